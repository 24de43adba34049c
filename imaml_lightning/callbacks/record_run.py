"""RecordRun: a checkpoint knows the configuration that made it, and which rows of the log came before it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from imaml_lightning.checkpoint import CONFIG_KEY, ROWS_KEY
from imaml_lightning.loggers import AppendingCSV


class RecordRun(Callback):
    """Puts the whole configuration into every checkpoint, as plain types, so that one file is enough to use it again."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config
        for logger in trainer.loggers:
            if isinstance(logger, AppendingCSV):
                checkpoint[ROWS_KEY] = logger.rows
