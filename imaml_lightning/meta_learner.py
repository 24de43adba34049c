"""MetaLearner: the LightningModule that meta-trains any Adaptation of any network."""

from __future__ import annotations

import contextlib
import inspect
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler

from imaml_lightning import checks
from imaml_lightning.adaptation import Adaptation, Adapted, Implicit
from imaml_lightning.calibration import seconds_a_task
from imaml_lightning.checkpoint import TRUSTED, check_trusted, read_checkpoint
from imaml_lightning.compiled import CompiledDerivatives
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import DivergedError, UsageError
from imaml_lightning.metrics import EpisodeMean
from imaml_lightning.models import Conv4
from imaml_lightning.objective import InnerObjective, task_losses
from imaml_lightning.parameters import FlatNetwork
from imaml_lightning.solution import Result, indicators

#: A run ends after this many meta-steps in a row whose gradient was not finite.
MAX_SKIPPED = 10


#: Under which a checkpoint keeps what a run needs, besides its state, to go on bit for bit.
COUNTERS_KEY = "imaml_lightning_counters"

#: Tasks that a CPU solves together. Measured with torch 2.13: 1.2 to 2.3 times faster than one by one (benchmarks/task_chunk.py).
CPU_CHUNK = 16


class MetaLearner(LightningModule):
    """Meta-learns θ so that adapting it to a task's support set does well on the task's query set.

    One meta-step: for each chunk of tasks, adapt (``adaptation``), take the query loss, ``manual_backward``; then one
    step of the outer optimizer and of its scheduler on the mean over tasks.

    Args:
        network: any module from inputs ``[example, *feature]`` to outputs ``[example, output]``, without running statistics.
        adaptation: the map θ ↦ φ; Implicit is iMAML.
        criterion: loss of outputs against targets, inner and outer; CrossEntropyLoss or MSELoss.
        support_criterion: another loss for the support set, such as a learned one; None is ``criterion``.
        optimizer: the outer optimizer.
        scheduler: of the outer learning rate, stepped once a meta-step.
        adapt: name patterns of the parameters that are adapted to a task; the others keep their meta-learned values.
        task_chunk: tasks solved together by vmap; ``auto`` is at most 16 on a CPU and all at once elsewhere, ``measured`` is what
            is fastest here in the first meta-step (a checkpoint remembers it). Changes memory and speed, and results only by rounding.
        clip_norm: largest norm of the meta-gradient; longer ones are shortened to it.

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
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.001),
        scheduler: LRSchedulerCallable | None = None,
        adapt: Sequence[str] = ("*",),
        task_chunk: int | Literal["auto", "measured"] = "auto",
        clip_norm: float | None = None,
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
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.support_criterion = support_criterion
        self.optimizer, self.scheduler = optimizer, scheduler
        self.task_chunk, self.clip_norm = task_chunk, clip_norm
        self.measured_chunk: int | None = None
        self.derivatives: CompiledDerivatives | None = None  # callbacks.Compiled sets them
        self.flat = FlatNetwork(self.network, adapt)
        self.adaptation.fit_to(self.flat)
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64))
        self.skipped_in_a_row = 0
        self.scores: dict[str, EpisodeMean] = {}  # of the episodes of this validation or test

    def _save_plain_hyperparameters(self) -> None:
        """Keep what ``load_from_checkpoint`` needs, as plain types.

        From the command line every argument arrives as its configuration; from Python some are objects, which a
        checkpoint must not hold and which the caller gives again.
        """
        here = inspect.currentframe()
        assert here is not None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False, frame=here.f_back)
        for name, value in list(self.hparams.items()):
            if isinstance(value, nn.Module) or callable(value):
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
            UsageError: if the file is missing, damaged, or names a class of another package.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        check_trusted(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), checkpoint_path, trust)
        set_parsing_settings(import_path_allowlist=[*TRUSTED, *trust])  # Lightning builds the learner by jsonargparse
        return super().load_from_checkpoint(checkpoint_path, *args, **options | {"weights_only": True})

    @property
    def protocol(self) -> str:
        """``transductive`` where a query batch is normalised by its own statistics, else ``inductive``."""
        batch_norm = any(isinstance(m, _BatchNorm) and not m.track_running_stats for m in self.network.modules())
        return "transductive" if batch_norm else "inductive"

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        try:
            optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
            checks.positive("model.optimizer.init_args", lr=optimizer.param_groups[0]["lr"])
        except (ValueError, TypeError) as error:
            raise UsageError(f"--model.optimizer cannot be used ({error}): set its lr and other init_args") from error
        if self.scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def objective(self, support: Examples) -> InnerObjective:
        """The inner problem of each task of ``support``."""
        criterion = self.support_criterion or self.criterion
        return InnerObjective(
            self.flat, support, self.flat.vector(), self.adaptation.proximal, criterion, self.derivatives
        )

    def adapted(self, support: Examples) -> Adapted:
        """φ for each task of ``support``; differentiable in all meta-parameters where gradients are enabled."""
        return self.adaptation(self.objective(support))

    def judge(self, phi: Tensor, query: Examples) -> dict[str, Tensor]:
        """Query ``loss [task]`` at ``phi [task, param]``, and ``accuracy [task]`` where targets are classes."""
        outputs = self.flat.tasks(phi, query.x)
        figures = {"loss": task_losses(self.criterion, outputs, query)}
        if not query.y.is_floating_point():
            hits = (outputs.argmax(-1) == query.y).double()
            figures["accuracy"] = hits.sum(1) / query.real().sum(1)
        return figures

    def training_step(self, episode: Episode, batch_idx: int) -> None:
        began = time.perf_counter()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0: never, as in a barebones Trainer
        log_now = every > 0 and (self.global_step + 1) % every == 0
        logs: list[dict[str, Tensor]] = []
        if self.task_chunk == "measured" and self.measured_chunk is None:
            self._measure_chunk(episode.support)
        chunks = list(episode.chunks(self._chunk_size()))
        for number, chunk in enumerate(chunks, start=1):
            with self._gradient_sync(number == len(chunks)):
                logs.append(self.learn(chunk, episode.tasks, log_now))
        norm = self._outer_step()
        if log_now:
            self._log_step(logs, norm, time.perf_counter() - began)

    def learn(self, chunk: Episode, tasks: int, log_now: bool) -> dict[str, Tensor]:
        """Add a chunk's part of the meta-gradient to the parameters' ``grad``; what the log tells of its tasks, if asked."""
        objective = self.objective(chunk.support)
        adapted = self.adaptation(objective)
        figures = self.judge(adapted.phi, chunk.query)
        query = objective.on(chunk.query, self.criterion)
        loss = self.adaptation.outer_loss(adapted, figures["loss"], objective, query)
        self.manual_backward(loss.sum() / tasks)
        return self._task_figures(chunk, adapted, figures) if log_now else {}

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        self._evaluate(episode)

    def test_step(self, episode: Episode, batch_idx: int) -> None:
        self._evaluate(episode)

    def predict_step(self, episode: Episode, batch_idx: int) -> Tensor:
        """Outputs on the query set after adaptation ``[task, example, output]``: class probabilities or regression values.

        Not a number for padding.
        """
        _, after = self.outputs(episode)
        after = after if episode.query.y.is_floating_point() else after.softmax(-1)
        return torch.where(episode.query.real().unsqueeze(-1), after, torch.nan)

    def outputs(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The network's outputs on the query set ``[task, example, output]`` at θ and, adapted, at φ; without a graph."""
        with _normal_mode():
            pairs = []
            for chunk in _own(episode).chunks(self._chunk_size()):
                theta = self.flat.vector().expand(chunk.tasks, -1)
                phi = self.adapted(chunk.support).phi
                pairs.append(tuple(self.flat.tasks(at, chunk.query.x) for at in (theta, phi)))
            before, after = zip(*pairs, strict=True)
            return torch.cat(before), torch.cat(after)

    def on_validation_epoch_start(self) -> None:
        self.scores.clear()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _measure_chunk(self, support: Examples) -> None:
        """The same for all ranks: the first one's."""
        times = seconds_a_task(self.objective, support)
        best = min(times, key=lambda size: times[size])
        self.measured_chunk = self.trainer.strategy.broadcast(best)
        measured = ", ".join(f"{size}: {1000 * time:.3g}" for size, time in times.items())
        self.print(f"task_chunk {self.measured_chunk}; ms of an inner gradient a task, by tasks together: {measured}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[COUNTERS_KEY] = {"measured_chunk": self.measured_chunk, "skipped_in_a_row": self.skipped_in_a_row}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint.get(COUNTERS_KEY, {}).items():
            setattr(self, name, value)

    def _chunk_size(self) -> int | None:
        if self.measured_chunk is not None and self.task_chunk == "measured":
            return self.measured_chunk
        if isinstance(self.task_chunk, str):
            return CPU_CHUNK if self.device.type == "cpu" else None
        return self.task_chunk

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager:
        """Under DDP, ranks exchange gradients once a meta-step, in the backward pass of the last chunk."""
        strategy = self.trainer.strategy
        return (
            contextlib.nullcontext()
            if last or not isinstance(strategy, DDPStrategy)
            else strategy.block_backward_sync()
        )

    def _outer_step(self) -> Tensor:
        """One step of the outer optimizer; a meta-gradient that is not finite is skipped and counted. Returns its norm.

        Raises:
            DivergedError: it was not finite ``MAX_SKIPPED`` times in a row.
        """
        optimizer = self._outer_optimizer()
        # Under 16-mixed the gradients are still multiplied by the loss scale here; the optimizer's step divides it out.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler else 1.0
        limit = float("inf") if self.clip_norm is None else self.clip_norm * scale
        norm = nn.utils.clip_grad_norm_((p for p in self.parameters() if p.requires_grad), limit) / scale
        finite = bool(norm.isfinite())
        if finite or scaler:  # a scaler skips by itself, and then lowers its scale
            optimizer.step()
        if finite:
            self.adaptation.after_outer_step(self.flat, optimizer.optimizer)
            self.skipped_in_a_row = 0
            if self.scheduler is not None:
                scheduler = self.lr_schedulers()
                assert isinstance(scheduler, LRScheduler)
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

    def _outer_optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)  # there is one
        return optimizer

    def _task_figures(self, chunk: Episode, adapted: Adapted, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the log tells of each task of a chunk, all ``[task]``."""
        logs = {name: value.detach() for name, value in figures.items()}
        with torch.no_grad():
            theta = self.flat.vector().expand(chunk.tasks, -1)
            before = self.judge(theta, chunk.query)
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
        logs |= {"seconds": torch.tensor(seconds), "peak_memory_mb": torch.tensor(self._peak_memory())}
        bar = "accuracy" if "accuracy" in logs else "loss"
        for name, value in logs.items():
            self.log(f"train/{name}", value.float(), prog_bar=name == bar, sync_dist=True)
        self.log("lr", self._outer_optimizer().param_groups[0]["lr"])

    def _peak_memory(self) -> float:
        """Peak memory of this process in MB: on the device for CUDA, resident otherwise."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def _evaluate(self, episode: Episode) -> None:
        with _normal_mode():
            for chunk in _own(episode).chunks(self._chunk_size()):
                adapted = self.adapted(chunk.support)
                figures = self._task_figures(chunk, adapted, self.judge(adapted.phi, chunk.query))
                for name, values in figures.items():
                    if name not in self.scores:
                        self.scores[name] = EpisodeMean().to(self.device)
                    self.scores[name].update(values)

    def _log_scores(self, stage: str) -> None:
        for name, metric in self.scores.items():
            score = metric.compute()
            shown = f"{name}_{self.protocol}" if stage == "test" and name == "accuracy" else name
            # Already the same on every rank; sync_dist only tells Lightning so.
            self.log(f"{stage}/{shown}", score["mean"].float(), prog_bar=name == "accuracy", sync_dist=True)
            if name in ("loss", "accuracy"):
                self.log(f"{stage}/{shown}_ci95", score["ci95"].float(), sync_dist=True)


def validation_figures(classes: bool) -> set[str]:
    """Names of what validation logs of an iterative inner solver, with accuracies where the targets are ``classes``."""
    scores = ("loss", "accuracy") if classes else ("loss",)
    inner = ("residual", "stationarity", "steps", *(code.name.lower() for code in Result))
    names = [f"{score}{kind}" for score in scores for kind in ("", "_before", "_ci95")]
    return {f"val/{name}" for name in (*names, *(f"inner_{name}" for name in inner))}


@contextlib.contextmanager
def _normal_mode() -> Iterator[None]:
    """No gradients to meta-parameters, but autograd usable inside: inner solves need it, and inference mode forbids it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _own(episode: Episode) -> Episode:
    """The episode as tensors that autograd accepts, also where the Trainer made them under inference mode."""
    return Episode(*(Examples(*(t.clone() if t.is_inference() else t for t in part)) for part in episode))
