"""MovingAverage: what is validated, tested and kept is an average of θ over the last meta-steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from imaml_lightning.errors import UsageError


class MovingAverage(WeightAveraging):
    """Exponential moving average of every meta-parameter and running statistic:
    ``--trainer.callbacks+=MovingAverage``.

    After the first meta-step the average is θ; after each later one, with n averaged so far,

        average ← d·average + (1 − d)·θ,    d = min(decay, (1 + n) / (10 + n)),

    so that a short run is not held to its start. Buffers of whole numbers are copied. Training goes on from θ, as if there
    were no average. Validation is of the average, and checkpoints hold it as their ``state_dict``, for ``test``,
    ``predict`` and ``load``; θ lies beside it, and a run goes on from there bit for bit. Pictures show θ until the run ends.

    Lightning's own EMAWeightAveraging will not do: given a checkpoint to test after training it goes back to θ, and it
    averages counters.

    Args:
        decay: how much of the average a meta-step leaves, at least 0 and below 1.

    Raises:
        UsageError: for another decay.

    Source of the first steps' d: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"decay of MovingAverage must be at least 0 and below 1, but is {decay}")

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():
                return current
            n = int(count)
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # elsewhere the average is wanted, which the learner has been given already
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
