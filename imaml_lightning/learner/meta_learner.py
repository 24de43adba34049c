"""MetaLearner: the LightningModule that meta-trains any Adaptation of any network."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from imaml_lightning.adaptation import Adaptation, Adapted, Implicit
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import DivergedError, UsageError, check_at_least, check_positive
from imaml_lightning.learner.advice import outcome
from imaml_lightning.learner.calibration import seconds_a_task
from imaml_lightning.learner.checkpoint import TRUSTED, check_trusted, read_checkpoint
from imaml_lightning.learner.criterion import ByTargets, check_criterion
from imaml_lightning.learner.folds import folded
from imaml_lightning.learner.medians import EpisodeMedian
from imaml_lightning.learner.memory import peak_memory
from imaml_lightning.learner.metrics import EpisodeMean
from imaml_lightning.learner.modes import answering
from imaml_lightning.learner.outer import monitored, try_step
from imaml_lightning.learner.parts import PARTS_KEY, check_parts, kept_parts, warn_of_others
from imaml_lightning.learner.preflight import preflight
from imaml_lightning.learner.reach import exchanged, reached
from imaml_lightning.learner.targets import settled
from imaml_lightning.models import Conv4
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.cut import Cut
from imaml_lightning.problem.feature_memory import FeatureMemory
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.randomness import seeded
from imaml_lightning.problem.solution import Result, indicators

#: A run ends after this many meta-steps in a row whose gradient was not finite.
MAX_SKIPPED = 10


#: Under which a checkpoint keeps what a run needs, besides its state, to go on bit for bit.
COUNTERS_KEY = "imaml_lightning_counters"

#: Figures of which validation and test give the median beside the mean.
MEDIANS = ("loss", "loss_before", "accuracy", "accuracy_before", "inner_stationarity", "inner_growth")

#: Tasks that a CPU solves together. Measured with torch 2.13: 1.2 to 2.3 times faster than one by one (benchmarks/task_chunk.py).
CPU_CHUNK = 16


class MetaLearner(LightningModule):
    """Meta-learns θ so that adapting it to a task's support set does well on the task's query set.

    One meta-step: for each chunk of tasks, adapt (``adaptation``), take the query loss, ``manual_backward``; then one
    step of the outer optimizer and of its scheduler on the mean over tasks.

    Args:
        network: any module from inputs ``[example, *feature]`` to outputs ``[example, output]``, without running statistics
            in what is adapted.
        adaptation: the map θ ↦ φ; Implicit is iMAML.
        criterion: loss of outputs against targets, inner and outer; None is cross-entropy for classes and mean squared error for
            values.
        support_criterion: another loss for the support set, such as a learned one; None is ``criterion``.
        optimizer: the outer optimizer; Adam of rate 0.001 if not given.
        scheduler: of the outer learning rate, stepped once a meta-step; ``ReduceLROnPlateau`` after each validation.
        adapt: name patterns of the parameters that are adapted to a task; the others keep their meta-learned values.
        task_chunk: tasks solved together by vmap; ``auto`` is at most 16 on a CPU and all at once elsewhere, ``measured`` is what
            is fastest here in the first meta-step (a checkpoint remembers it). Changes memory and speed, and results only by rounding.
        clip_norm: largest norm of the meta-gradient; longer ones are shortened to it.
        folds: tasks made of each training episode's images, each with other ones for its support set; their features are
            computed once. At most (shot + query) / shot.

    Raises:
        UsageError: for a value that cannot be used.
    """

    skipped_steps: Tensor

    def __init__(
        self,
        network: nn.Module | None = None,
        adaptation: Adaptation | None = None,
        criterion: nn.Module | None = None,
        support_criterion: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        adapt: Sequence[str] = ("*",),
        task_chunk: int | Literal["auto", "measured"] = "auto",
        clip_norm: float | None = None,
        folds: int = 1,
    ) -> None:
        super().__init__()
        if isinstance(task_chunk, int) and task_chunk < 1:
            raise UsageError(f"task_chunk must be at least 1, got {task_chunk}: set --model.task_chunk to auto or more")
        if clip_norm is not None and not 0 < clip_norm < float("inf"):
            raise UsageError(f"clip_norm must be positive, got {clip_norm}: set --model.clip_norm or leave it out")
        self._save_plain_hyperparameters()
        self.automatic_optimization = False
        self.network = network or Conv4()
        self.adaptation = adaptation or Implicit()
        self.criterion = criterion or ByTargets()
        self.support_criterion = support_criterion
        # No lambda, which could not be pickled.
        self.optimizer = optimizer or partial(torch.optim.Adam, lr=0.001)
        self.scheduler = scheduler
        check_at_least(1, "model", folds=folds)
        self.task_chunk, self.clip_norm, self.folds = task_chunk, clip_norm, folds
        self.measured_chunk: int | None = None
        self.seed: int | None = None  # of what the network draws; a checkpoint remembers it
        self.derivatives: CompiledDerivatives | None = None  # callbacks.Compiled sets them
        self.flat = FlatNetwork(self.network, adapt)
        regroups = f"{type(self.adaptation).__name__} groups examples anew"
        self.cut = Cut(self.flat, regroups if self.adaptation.regroups else "")
        _refuse_running_statistics(self.cut.adapted.network, self.cut.why_whole)
        self.adaptation.fit_to(self.flat)
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64))
        self.skipped_in_a_row = 0
        self.checked = False  # whether the network has shown, on two tasks, what it can do
        self.unreached: set[str] = set()  # parameters, as far as it was said
        self.scores: dict[str, EpisodeMean] = {}  # of the episodes of this validation or test
        self.medians: dict[str, EpisodeMedian] = {}

    def _save_plain_hyperparameters(self) -> None:
        """Keep what ``load_from_checkpoint`` needs, as plain types.

        From the command line every argument arrives as its configuration; from Python some are objects, which a
        checkpoint must not hold and which the caller gives again.
        """
        here = inspect.currentframe()
        assert here is not None
        assert here.f_back is not None
        given = _given_hyperparameters.get() or here.f_back.f_locals
        # Lightning would make a deep copy of each module, which not every module bears.
        modules = [name for name, value in given.items() if isinstance(value, nn.Module)]
        self.save_hyperparameters(logger=False, frame=here.f_back, ignore=modules)
        for name, value in list(self.hparams.items()):
            if callable(value):
                del self.hparams[name]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a file's path alone, not a stream
        cls, checkpoint_path: str | Path, *args: Any, trust: Sequence[str] = (), **options: Any
    ) -> MetaLearner:
        """The learner of a checkpoint, as Lightning's method of this name, but nothing in the file is executed.

        Args:
            checkpoint_path: a file on this computer.
            *args: as in Lightning, such as ``map_location``.
            trust: packages, besides ours and torch's, whose classes the checkpoint may name.
            **options: arguments of the learner that replace those in the checkpoint.

        Raises:
            UsageError: if the file is missing, damaged, names a class of another package, or needs a part that was an
                object in Python and is not given here.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        arguments = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        check_trusted(arguments, checkpoint_path, trust)
        set_parsing_settings(import_path_allowlist=[*TRUSTED, *trust])  # Lightning builds the learner by jsonargparse
        # Lightning reads the file again; what replaces its arguments names classes by where they are today.
        options = options if "hparams_file" in options else arguments | options
        parts = checkpoint.get(PARTS_KEY, {})
        check_parts(checkpoint_path, parts, options, cls)
        try:
            with torch.inference_mode(False):  # or its parameters could never be differentiated
                learner = super().load_from_checkpoint(checkpoint_path, *args, **options | {"weights_only": True})
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise UsageError(
                f"checkpoint {checkpoint_path} is of another network: give the one that was trained, load(path, network=…)"
            ) from error
        warn_of_others(checkpoint_path, parts, learner)
        return learner

    @property
    def protocol(self) -> str:
        """``transductive`` where a query batch is normalised by its own statistics, else ``inductive``."""
        batch_norm = any(isinstance(m, _BatchNorm) and not m.track_running_stats for m in self.network.modules())
        return "transductive" if batch_norm else "inductive"

    @property
    def any_way(self) -> bool:
        """Whether tasks may have any number of classes."""
        return self.flat.any_way

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        trained = [p for p in self.parameters() if p.requires_grad]
        try:
            optimizer = self.optimizer(iter(trained))
            check_positive("model.optimizer.init_args", lr=optimizer.param_groups[0]["lr"])
        except (ValueError, TypeError) as error:
            raise UsageError(f"--model.optimizer cannot be used ({error}): set its lr and other init_args") from error
        try_step(self.optimizer, trained)
        if self.scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def features(self, episode: Episode) -> Episode:
        """The episode with features in place of inputs: what comes before the first adapted parameter, evaluated once."""
        support, query = self.cut.features(episode.support.x, episode.query.x)
        return Episode(episode.support._replace(x=support), episode.query._replace(x=query))

    def objective(self, support: Examples, way: int | None = None) -> InnerObjective:
        """The inner problem of each task of ``support``, whose x are inputs."""
        return self.objective_on(support._replace(x=self.cut.features(support.x)[0]), way)

    def objective_on(self, support: Examples, way: int | None = None) -> InnerObjective:
        """The inner problem of each task of ``support``, whose x are features; of as many classes as it has, or ``way``, where
        the network is free in that."""
        way = (way or int(support.y.max()) + 1) if self.flat.any_way else None
        criterion = self.support_criterion or self.criterion
        theta = self.flat.vector(way)
        return InnerObjective(self.cut.adapted, support, theta, self.adaptation.proximal, criterion, self.derivatives)

    def adapted(self, support: Examples, way: int | None = None) -> Adapted:
        """φ for each task of ``support``, whose x are inputs; differentiable in all meta-parameters where gradients are enabled."""
        return self.adaptation(self.objective(support, way))

    def judge(self, phi: Tensor, query: Examples) -> dict[str, Tensor]:
        """Query ``loss [task]`` at ``phi [task, param]``, and ``accuracy [task]`` where targets are classes; x are inputs."""
        return self.judge_on(phi, query._replace(x=self.cut.features(query.x)[0]))

    def judge_on(self, phi: Tensor, query: Examples) -> dict[str, Tensor]:
        """As ``judge``, of ``query`` whose x are features."""
        outputs = self.cut.adapted.tasks(phi, query.x)
        for criterion in filter(None, (self.criterion, self.support_criterion)):
            check_criterion(criterion, outputs, query.y)
        figures = {"loss": task_losses(self.criterion, outputs, query)}
        if not query.y.is_floating_point():
            hits = (outputs.argmax(-1) == query.y).double()
            figures["accuracy"] = hits.sum(1) / query.real().sum(1)
        return figures

    def training_step(self, episode: Episode, batch_idx: int) -> None:
        began = time.perf_counter()
        episode = settled(episode)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0: never, as in a barebones Trainer
        log_now = every > 0 and (self.global_step + 1) % every == 0
        if not self.checked:
            preflight(self, episode)
            self.checked = True
        # Since the first, with those that were skipped.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        meta_step: int = progress.processed
        with self._drawing(meta_step, 0):
            episode = folded(self.features(episode), self.folds)
        if self.task_chunk == "measured" and self.measured_chunk is None:
            self._measure_chunk(episode.support)
        logs: list[dict[str, Tensor]] = []
        earlier: list[tuple[Episode, Episode]] = []
        *before, last = episode.chunks(self._chunk_size())
        with self._all_or_none():
            for number, chunk in enumerate(before, start=1):
                # The shared part is walked back through once, with the last chunk; until then its features collect gradients.
                ends = chunk if self.cut.whole else _leaves(chunk)
                earlier += [] if self.cut.whole else [(chunk, ends)]
                with self._no_gradient_sync(), self._drawing(meta_step, number):
                    logs.append(self.learn(ends, episode.tasks, log_now))
            with self._drawing(meta_step, len(before) + 1):
                logs.append(self.learn(last, episode.tasks, log_now, *([earlier] if earlier else [])))
        norm = self._outer_step()
        if log_now:
            self._log_step(logs, norm, time.perf_counter() - began)

    def learn(
        self, chunk: Episode, tasks: int, log_now: bool, earlier: Sequence[tuple[Episode, Episode]] = ()
    ) -> dict[str, Tensor]:
        """Add a chunk's part of the meta-gradient to the parameters' ``grad``; what the log tells of its tasks, if asked.

        Args:
            chunk: tasks with features for inputs.
            tasks: of the whole meta-step, over which the loss is a mean.
            log_now: whether the log is written in this meta-step.
            earlier: chunks learned from before, with the same whose features have collected their gradients.
        """
        objective = self.objective_on(chunk.support)
        adapted = self.adaptation(objective)
        figures = self.judge_on(adapted.phi, chunk.query)
        query = objective.on(chunk.query, self.criterion)
        loss = self.adaptation.outer_loss(adapted, figures["loss"], objective, query).sum() / tasks
        for attached, collected in earlier:
            for part, end in zip(attached, collected, strict=True):
                if end.x.grad is not None:
                    loss = loss + (part.x * (end.x.grad / self._loss_scale())).sum()
        self.manual_backward(exchanged(loss, self._trained().values()) if self._in_ddp() else loss)
        return self._task_figures(chunk, adapted, objective.theta, figures) if log_now else {}

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        self._evaluate(episode, batch_idx)

    def test_step(self, episode: Episode, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(episode, batch_idx, self._setting(dataloader_idx))

    def predict_step(self, episode: Episode, batch_idx: int) -> Tensor:
        """Outputs on the query set after adaptation ``[task, example, output]``: class probabilities or regression values."""
        with self._drawing(batch_idx):
            _, after = self.outputs(episode)
        return after if episode.query.y.is_floating_point() else after.softmax(-1)

    def outputs(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The network's outputs on the query set ``[task, example, output]`` at θ and, adapted, at φ; without a graph.

        In evaluation mode, without dropout, also in the middle of a training and after it.
        """
        with answering(self), torch.no_grad():
            pairs = []
            for chunk in map(self.features, settled(episode).chunks(self._chunk_size())):
                objective = self.objective_on(chunk.support)
                ends = objective.start(), self.adaptation(objective).phi
                pairs.append(tuple(self.cut.adapted.tasks(at, chunk.query.x) for at in ends))
            before, after = zip(*pairs, strict=True)
            return torch.cat(before), torch.cat(after)

    def on_validation_epoch_start(self) -> None:
        self.scores.clear()
        self.medians.clear()
        self.cut.memory = FeatureMemory()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.cut.memory = None
        self._log_scores("val")
        if self.trainer.state.fn == "fit":
            self._step_plateau()

    def on_test_epoch_end(self) -> None:
        self.cut.memory = None
        self._log_scores("test")

    def _measure_chunk(self, support: Examples) -> None:
        """The same for all ranks: the first one's."""
        times = seconds_a_task(self.objective_on, support)
        best = min(times, key=lambda size: times[size])
        self.measured_chunk = self.trainer.strategy.broadcast(best)
        measured = ", ".join(f"{size}: {1000 * time:.3g}" for size, time in times.items())
        self.print(f"task_chunk {self.measured_chunk}; ms of an inner gradient a task, by tasks together: {measured}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = ("measured_chunk", "skipped_in_a_row", "seed")
        checkpoint[COUNTERS_KEY] = {name: getattr(self, name) for name in names}
        if parts := kept_parts(self, self.hparams):
            checkpoint[PARTS_KEY] = parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint.get(COUNTERS_KEY, {}).items():
            setattr(self, name, value)

    def on_train_start(self) -> None:
        figure = monitored(self._outer_scheduler())
        if figure is not None and not self.trainer.num_val_batches:
            raise UsageError(
                f"the scheduler waits for {figure} and there is no validation: use one that follows the steps"
            )

    def setup(self, stage: str) -> None:
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise UsageError(
                f"precision {self.trainer.precision} leaves no digits for solves: set --trainer.precision to bf16-mixed, "
                "under which they are float32, or 32-true"
            )
        if self.seed is None:
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def _drawing(self, *place: int) -> contextlib.AbstractContextManager:
        """Within it the network draws (dropout, noise) by the run's seed, this rank and ``place`` alone: a resumed run draws
        the same, whatever validation, the log or a user's own code has drawn in between.
        """
        seed = torch.initial_seed() if self.seed is None else self.seed  # it has no run without a Trainer
        return seeded(self.device, seed, self.global_rank, *place)

    def _chunk_size(self) -> int | None:
        if self.measured_chunk is not None and self.task_chunk == "measured":
            return self.measured_chunk
        if isinstance(self.task_chunk, str):
            together = self.device.type != "cpu" or self.cut.adapted.is_linear
            return None if together else CPU_CHUNK
        return self.task_chunk

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _in_ddp(self) -> bool:
        return self._trainer is not None and isinstance(self.trainer.strategy, DDPStrategy)

    def _no_gradient_sync(self) -> contextlib.AbstractContextManager:
        """Under DDP, ranks exchange gradients once a meta-step, in the backward pass of the last chunk, and not within this."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else contextlib.nullcontext()

    def _loss_scale(self) -> float:
        """By how much gradients are multiplied under 16-mixed until the optimizer steps; 1 elsewhere."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler.get_scale() if scaler else 1.0

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Parameters that the gradients taken within do not reach are not trained, on any number of ranks; says which, once."""
        trained = self._trained()
        with reached(trained.values() if self._in_ddp() else ()) as found:
            yield
        if self._in_ddp():
            for p in trained.values():
                p.grad = p.grad if p in found else None
        unreached = [name for name, p in trained.items() if p.grad is None and name not in self.unreached]
        if unreached:
            self.unreached.update(unreached)
            rank_zero_warn(
                f"no gradient of {type(self.adaptation).__name__} reaches {', '.join(unreached)}: they stay as they are; "
                "if they are to be learned, use an adaptation that differentiates them (Implicit gives all a gradient)"
            )

    def _outer_step(self) -> Tensor:
        """One step of the outer optimizer; a meta-gradient that is not finite is skipped and counted. Returns its norm.

        Raises:
            DivergedError: it was not finite ``MAX_SKIPPED`` times in a row.
        """
        optimizer = self._outer_optimizer()
        # Under 16-mixed the gradients are still multiplied by the loss scale here; the optimizer's step divides it out.
        scaler, scale = getattr(self.trainer.precision_plugin, "scaler", None), self._loss_scale()
        limit = float("inf") if self.clip_norm is None else self.clip_norm * scale
        norm = nn.utils.clip_grad_norm_((p for p in self.parameters() if p.requires_grad), limit) / scale
        finite = bool(norm.isfinite())
        if finite or scaler:  # a scaler skips by itself, and then lowers its scale
            optimizer.step()
        if finite:
            self.adaptation.after_outer_step(self.flat, optimizer.optimizer)
            self.skipped_in_a_row = 0
            scheduler = self._outer_scheduler()
            if scheduler is not None and monitored(scheduler) is None:
                scheduler.step()
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row == MAX_SKIPPED:
                raise DivergedError(
                    f"the meta-gradient was not finite {MAX_SKIPPED} steps in a row: lower the inner or outer learning rate"
                )
        optimizer.zero_grad()
        return norm

    def _outer_scheduler(self) -> LRScheduler | None:
        scheduler = self.lr_schedulers()
        assert not isinstance(scheduler, list)
        return scheduler

    def _step_plateau(self) -> None:
        """Tell a scheduler that waits for a figure of the validation what it has become.

        Raises:
            UsageError: validation has no such figure.
        """
        figure = monitored(self._outer_scheduler())
        if figure is None or self.trainer.sanity_checking:
            return
        known = self.trainer.callback_metrics
        if figure not in known:
            raise UsageError(
                f"the scheduler waits for {figure}, which validation does not log: set its monitor to one of "
                f"{sorted(name for name in known if name.startswith('val/'))}"
            )
        scheduler = self._outer_scheduler()
        assert isinstance(scheduler, ReduceLROnPlateau)
        scheduler.step(known[figure])

    def _outer_optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)  # there is one
        return optimizer

    def _task_figures(
        self, chunk: Episode, adapted: Adapted, theta: Tensor, figures: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the log tells of each task of a chunk, all ``[task]``."""
        logs = {name: value.detach() for name, value in figures.items()}
        with torch.no_grad():
            before = self.judge_on(theta.expand(chunk.tasks, -1), chunk.query)
        logs |= {f"{name}_before": value for name, value in before.items()}
        logs |= {"inner_stationarity": adapted.stationarity}
        for name, solution in (("inner", adapted.inner), ("linear", adapted.linear)):
            if solution is not None:
                logs |= {f"{name}_residual": solution.residual, f"{name}_steps": solution.steps}
                logs |= {f"{name}_{code}": share for code, share in indicators(solution.result).items()}
        return logs

    def _log_step(self, chunks: list[dict[str, Tensor]], norm: Tensor, seconds: float) -> None:
        logs = {name: torch.cat([chunk[name] for chunk in chunks]).double().mean() for name in chunks[0]}
        logs |= {"gradient_norm": norm, "skipped_steps": self.skipped_steps.double()} | self.adaptation.figures()
        logs |= {"seconds": torch.tensor(seconds)}
        if (peak := peak_memory(self.device)) is not None:
            logs |= {"peak_memory_mb": torch.tensor(peak)}
        bar = "accuracy" if "accuracy" in logs else "loss"
        for name, value in logs.items():
            self.log(f"train/{name}", value.float(), prog_bar=name == bar, sync_dist=True)
        self.log("lr", self._outer_optimizer().param_groups[0]["lr"])

    def _setting(self, number: int) -> str:
        """What goes before the figures of one test loader out of several: its name, or else its number, and a slash."""
        loaders = self.trainer.test_dataloaders
        if isinstance(loaders, Mapping):
            return f"{list(loaders)[number]}/"
        return f"{number}/" if isinstance(loaders, Sequence) and len(loaders) > 1 else ""

    def _evaluate(self, episode: Episode, number: int, setting: str = "") -> None:
        with answering(self), torch.no_grad(), self._drawing(number):
            for chunk in map(self.features, settled(episode).chunks(self._chunk_size())):
                objective = self.objective_on(chunk.support)
                adapted = self.adaptation(objective)
                judged = self.judge_on(adapted.phi, chunk.query)
                figures = self._task_figures(chunk, adapted, objective.theta, judged)
                for name, values in (figures | outcome(objective, adapted.phi)).items():
                    path = f"{setting}{name}"
                    if path not in self.scores:
                        self.scores[path] = EpisodeMean().to(self.device)
                        self.medians[path] = EpisodeMedian().to(self.device)
                    self.scores[path].update(values)
                    self.medians[path].update(values)

    def _log_scores(self, stage: str) -> None:
        for path, metric in self.scores.items():
            score, name = metric.compute(), path.rpartition("/")[2]
            shown = f"{path}_{self.protocol}" if stage == "test" and name == "accuracy" else path
            # Already the same on every rank; sync_dist only tells Lightning so.
            self.log(f"{stage}/{shown}", score["mean"].float(), prog_bar=name == "accuracy", sync_dist=True)
            if name in ("loss", "accuracy"):
                self.log(f"{stage}/{shown}_ci95", score["ci95"].float(), sync_dist=True)
            if name in MEDIANS:
                self.log(f"{stage}/{path}_median", self.medians[path].compute(), sync_dist=True)


def _refuse_running_statistics(adapted: nn.Module, why_whole: str) -> None:
    """What is adapted is evaluated at many points for each task, of which running statistics would be a mixture."""
    for name, module in adapted.named_modules():
        if getattr(module, "track_running_stats", False):
            whole = f" (the network stays whole, because {why_whole})" if why_whole else ""
            raise UsageError(
                f"{type(module).__name__} {name} keeps running statistics among what is adapted{whole}: adapt only what comes "
                "after it, or build it with track_running_stats=False (--model.network.norm batch)"
            )


def validation_figures(classes: bool) -> set[str]:
    """Names of what validation logs of an iterative inner solver, with accuracies where the targets are ``classes``."""
    scores = ("loss", "accuracy") if classes else ("loss",)
    outcomes = ("diverged", "growth", "growth_median", "stationarity_median")
    inner = ("residual", "stationarity", "steps", *outcomes, *(code.name.lower() for code in Result))
    kinds = ("", "_before", "_ci95", "_median", "_before_median")
    names = [f"{score}{kind}" for score in scores for kind in kinds]
    return {f"val/{name}" for name in (*names, *(f"inner_{name}" for name in inner))}


def _leaves(chunk: Episode) -> Episode:
    """The chunk with features that are leaves, in which gradients are collected."""
    return Episode(*(part._replace(x=part.x.detach().requires_grad_(part.x.requires_grad)) for part in chunk))
