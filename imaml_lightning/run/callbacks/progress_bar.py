"""ProgressBar: Lightning's Rich bar, with what matters here."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Shows four numbers: the accuracy (or loss) after adaptation in training and in validation, and the two errors of the
    meta-gradient, ‖∇G‖ / ‖∇L‖ and ‖Au − v‖ / ‖v‖; and no end of epochs, which there is not."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        figures = trainer.callback_metrics
        score = "accuracy" if "train/accuracy" in figures or "val/accuracy" in figures else "loss"
        shown = {
            f"train/{score}": score,
            f"val/{score}": "val",
            "train/inner_stationarity": "inner error",
            "train/linear_residual": "linear error",
        }
        return {label: f"{float(figures[name]):.3g}" for name, label in shown.items() if name in figures}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"
