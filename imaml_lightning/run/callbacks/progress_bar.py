"""ProgressBar: one line on a terminal, with what matters here."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from imaml_lightning.run.callbacks.figures_line import Clock, last_figures, meta_steps


class ProgressBar(LightningBar):
    """Meta-steps of the whole run, the time left, and the figures of :func:`last_figures`; 80 columns are enough.

    While it validates, tests or predicts, batches are counted.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console()
        self._line: Progress | None = None
        self._clock = Clock()
        self._shown = True

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.global_step)
        self._show(trainer, "", trainer.global_step, meta_steps(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer, "", trainer.global_step, meta_steps(trainer))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        batches = sum(trainer.num_val_batches)
        if trainer.state.fn == TrainerFn.FITTING:  # between meta-steps, whose count and time go on
            done = f"validating {batch_idx + 1}/{batches}"
            self._show(trainer, done, trainer.global_step, meta_steps(trainer))
        else:
            self._count("validating", trainer, batch_idx, batches)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._count("testing", trainer, batch_idx, sum(trainer.num_test_batches))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._count("predicting", trainer, batch_idx, sum(trainer.num_predict_batches))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def _count(self, doing: str, trainer: Trainer, batch_idx: int, batches: float) -> None:
        if batch_idx == 0:
            self._begin(0)
        self._show(trainer, doing, batch_idx + 1, int(batches), figures="")

    def _begin(self, done: int) -> None:
        self._clock = Clock(done)
        if self._shown and self._line is None:
            columns = (
                "{task.fields[count]}",
                BarColumn(bar_width=None),
                "{task.fields[left]}",
                "{task.fields[figures]}",
            )
            self._line = Progress(
                *(TextColumn(c, markup=False) if isinstance(c, str) else c for c in columns),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._line.add_task("", count="", left="", figures="")
            self._line.start()

    def _show(self, trainer: Trainer, doing: str, done: int, total: int | None, figures: str | None = None) -> None:
        if self._line is not None:
            self._line.update(
                self._line.task_ids[0],
                completed=done,
                total=total,
                count=f"{doing} {done}" + ("" if total is None else f"/{total}"),
                left=self._clock.left(done, total),
                figures=last_figures(trainer) if figures is None else figures,
            )

    def _end(self) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None
