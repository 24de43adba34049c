"""RecordRun: a checkpoint knows the configuration that made it, and the rows of the log up to it."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from imaml_lightning.learner.checkpoint import CONFIG_KEY, PENDING_KEY, ROWS_KEY
from imaml_lightning.run.loggers import AppendingCSV


class RecordRun(Callback):
    """Puts the whole configuration into every checkpoint, as plain types, so that one file is enough to use it again.

    Lightning logs a meta-step's figures after the callbacks that save. A checkpoint taken between holds them, and a run
    that goes on from it logs them first.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._pending: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config
        for logger in trainer.loggers:
            if isinstance(logger, AppendingCSV):
                checkpoint[ROWS_KEY] = logger.rows
        loop, log = trainer.fit_loop.epoch_loop, trainer._logger_connector
        progress: Any = loop.batch_progress.current
        if progress.completed < progress.processed and log.should_update_logs:
            figures = {"epoch": trainer.current_epoch} | convert_tensors_to_scalars(log.metrics["log"])
            checkpoint[PENDING_KEY] = {"metrics": figures, "step": loop._batches_that_stepped}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pending = checkpoint.get(PENDING_KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            for logger in trainer.loggers:
                logger.log_metrics(**self._pending)
                logger.save()
