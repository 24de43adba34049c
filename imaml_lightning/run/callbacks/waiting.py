"""Waiting: how much of a meta-step is spent waiting for data."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Waiting(Callback):
    """Logs ``train/waiting``: of the time since the last logged meta-step, the share between two training steps.

    There the next episodes are drawn, or fetched from the workers, moved to the device and augmented. Near 0 all is well;
    above 0.1, raise ``--data.workers``. Validation between two steps is not counted.
    """

    def __init__(self) -> None:
        self._waited = self._worked = 0.0
        self._ended: float | None = None  # the last training step
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()
        if self._ended is not None:
            self._waited += self._began - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        self._worked += self._ended - self._began
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/waiting", self._waited / (self._waited + self._worked))
            self._waited = self._worked = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = None
