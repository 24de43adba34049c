"""MetaLearner: the LightningModule that meta-trains any Adaptation of any network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from imaml_lightning.adaptation import Adaptation, Adapted, Implicit
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.learner.advice import outcome
from imaml_lightning.learner.calibration import seconds_a_task
from imaml_lightning.learner.chunks import Learned, leaves, through_features
from imaml_lightning.learner.criterion import ByTargets
from imaml_lightning.learner.folds import folded
from imaml_lightning.learner.memory import peak_memory
from imaml_lightning.learner.outer import OuterSteps
from imaml_lightning.learner.preflight import preflight
from imaml_lightning.learner.restorable import Restorable
from imaml_lightning.learner.scoreboard import Scoreboard, mean_figures, setting_of, task_figures
from imaml_lightning.learner.targets import settled
from imaml_lightning.models import Conv4
from imaml_lightning.problem.feature_memory import FeatureMemory
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.randomness import seeded


class MetaLearner(Restorable, OuterSteps):
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

    counters = ("measured_chunk", "skipped_in_a_row", "seed")

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
        if clip_norm is not None and not 0 < clip_norm < float("inf"):
            raise UsageError(f"clip_norm must be positive, got {clip_norm}: set --model.clip_norm or leave it out")
        check_at_least(1, "model", folds=folds)
        super().__init__(
            network=network or Conv4(),
            adaptation=adaptation or Implicit(),
            criterion=criterion or ByTargets(),
            support_criterion=support_criterion,
            adapt=adapt,
            task_chunk=task_chunk,
        )
        self.save_plain(locals())
        # No lambda, which could not be pickled.
        self.optimizer = optimizer or partial(torch.optim.Adam, lr=0.001)
        self.scheduler, self.clip_norm, self.folds = scheduler, clip_norm, folds
        self.seed: int | None = None  # of what the network draws; a checkpoint remembers it
        self.checked = False  # whether the network has shown, on two tasks, what it can do
        self.scoreboard = Scoreboard()  # of the episodes of this validation or test

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
        earlier: list[Learned] = []
        *before, last = episode.chunks(self._chunk_size())
        with self._all_or_none():
            for number, chunk in enumerate(before, start=1):
                # The shared part is walked back through once, with the last chunk; until then its features collect gradients.
                ends = chunk if self.cut.whole else leaves(chunk)
                earlier += [] if self.cut.whole else [(chunk, ends)]
                with self._no_gradient_sync(), self._drawing(meta_step, number):
                    logs.append(self.learn(ends, episode.tasks, log_now))
            with self._drawing(meta_step, len(before) + 1):
                logs.append(self.learn(last, episode.tasks, log_now, *([earlier] if earlier else [])))
        norm = self._outer_step()
        if log_now:
            self._log_step(logs, norm, time.perf_counter() - began)

    def learn(self, chunk: Episode, tasks: int, log_now: bool, earlier: Sequence[Learned] = ()) -> dict[str, Tensor]:
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
        self.take_gradient(loss + through_features(earlier, self._loss_scale()))
        return self._task_figures(chunk, adapted, objective.theta, figures) if log_now else {}

    def validation_step(self, episode: Episode, batch_idx: int) -> None:
        self._evaluate(episode, batch_idx)

    def test_step(self, episode: Episode, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(episode, batch_idx, setting_of(self.trainer.test_dataloaders, dataloader_idx))

    def predict_step(self, episode: Episode, batch_idx: int) -> Tensor:
        """Outputs on the query set after adaptation ``[task, example, output]``: class probabilities or regression values.

        Not a number for padding.
        """
        with self._drawing(batch_idx):
            _, after = self.outputs(episode)
        after = after if episode.query.y.is_floating_point() else after.softmax(-1)
        return torch.where(episode.query.real().unsqueeze(-1), after, torch.nan)

    def on_validation_epoch_start(self) -> None:
        self.scoreboard.clear()
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

    def _task_figures(
        self, chunk: Episode, adapted: Adapted, theta: Tensor, after: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            before = self.judge_on(theta.expand(chunk.tasks, -1), chunk.query)
        return task_figures(adapted, before, after)

    def _log_step(self, chunks: list[dict[str, Tensor]], norm: Tensor, seconds: float) -> None:
        logs = mean_figures(chunks) | self.adaptation.figures()
        logs |= {"gradient_norm": norm, "skipped_steps": self.skipped_steps.double(), "seconds": torch.tensor(seconds)}
        if (peak := peak_memory(self.device)) is not None:
            logs |= {"peak_memory_mb": torch.tensor(peak)}
        bar = "accuracy" if "accuracy" in logs else "loss"
        for name, value in logs.items():
            self.log(f"train/{name}", value.float(), prog_bar=name == bar, sync_dist=True)
        self.log("lr", self._outer_optimizer().param_groups[0]["lr"])

    def _evaluate(self, episode: Episode, number: int, setting: str = "") -> None:
        with answering(self), torch.no_grad(), self._drawing(number):
            for chunk in map(self.features, settled(episode).chunks(self._chunk_size())):
                objective = self.objective_on(chunk.support)
                adapted = self.adaptation(objective)
                judged = self.judge_on(adapted.phi, chunk.query)
                figures = self._task_figures(chunk, adapted, objective.theta, judged)
                self.scoreboard.update(figures | outcome(objective, adapted.linearised), setting)

    def _log_scores(self, stage: str) -> None:
        for path, value in self.scoreboard.figures().items():
            setting, _, name = path.rpartition("/")
            if stage == "test" and name in ("accuracy", "accuracy_ci95"):
                path = f"{setting}/" * bool(setting) + name.replace("accuracy", f"accuracy_{self.protocol}")
            # Already the same on every rank; sync_dist only tells Lightning so.
            self.log(f"{stage}/{path}", value, prog_bar=name == "accuracy", sync_dist=True)
