"""Pictures: a run's folder shows at a glance whether it learns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.evaluation.diagnostics import adaptation_curve, solves
from imaml_lightning.evaluation.figures import (
    adaptation_curves,
    contact_sheet,
    learning_curves,
    regression_fits,
    solve_histograms,
)
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.problem.modes import answering

TASKS = 8  # fixed validation tasks that are looked at
SHEETS = 3  # of which so many are shown as contact sheets
POINTS = 6  # of their way from θ to φ at which the query set is judged
SHARE = 0.03  # of the time of training that pictures may take, besides the first and the last


class Pictures(Callback):
    """After validation, draws in the run's folder and in W&B: episodes, adaptation, the solves, and learning.

    ``episode*.png`` are the first validation tasks before and after adaptation, ``adaptation.png`` the score of 8
    of them over the inner steps, ``solves.png`` the errors of their inner and linear solves and how these ended,
    ``learning.png`` the whole run so far.

    Drawn after the first validation and at the end; between, where all pictures together have taken 3 % of the time of
    training at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began = self._spent = 0.0
        self._due = False  # the last validation was left out

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._due = self._spent > SHARE * (time.perf_counter() - self._began)
        if not self._due:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due:
            with answering(pl_module):
                self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        began = time.perf_counter()
        assert isinstance(pl_module, MetaLearner)
        for name, figure in self._figures(trainer, pl_module):
            path = self.folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"pictures/{name}", [str(path)])
        self._spent += time.perf_counter() - began

    def _figures(self, trainer: Trainer, learner: MetaLearner) -> Iterator[tuple[str, Figure]]:
        data: EpisodeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        tasks = min(TASKS, data.val_episodes)
        episode = trainer.strategy.batch_to_device(data.given("val", 0, tasks=tasks))
        before, after = learner.outputs(episode)
        if episode.query.y.is_floating_point():
            yield "episode", regression_fits(episode, before, after)
        elif len(data.source.shape) == 3:  # images, not the features of a table
            seen = data.episode("val", 0, tasks=tasks)
            for task in range(min(SHEETS, tasks)):
                yield f"episode{task or ''}", contact_sheet(seen, before.cpu(), after.cpu(), task)
        curve = adaptation_curve(learner, episode, points=POINTS)
        yield "adaptation", adaptation_curves(curve.evaluations, curve.figures)
        report = solves(learner, episode)
        yield "solves", solve_histograms(report.inner, report.stationarity, report.linear)
        if (self.folder / "metrics.csv").exists():
            yield "learning", learning_curves(self.folder)
