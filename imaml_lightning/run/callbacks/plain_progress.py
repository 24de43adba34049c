"""PlainProgress: one line a validation, for logs and pipes, where a progress bar would be noise."""

from __future__ import annotations

import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class PlainProgress(Callback):
    """Prints the meta-step, the elapsed time and the newest figures after each validation."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")
        figures = (f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics)
        elapsed = time.monotonic() - self._began
        print(f"meta-step {trainer.global_step}, {elapsed:.0f} s: {', '.join(figures)}", flush=True)
