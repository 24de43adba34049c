"""MovingAverage: what is validated, tested and kept is an average of θ over the last meta-steps."""

from __future__ import annotations

from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import CURRENT_KEY


class MovingAverage(Callback):
    """Exponential moving average of every meta-parameter and running statistic: ``--trainer.callbacks+=MovingAverage``.

    After the first meta-step the average is θ; after each later one, with n averaged so far,

        average ← d·average + (1 − d)·θ,    d = min(decay, (1 + n) / (10 + n)),

    so that a short run is not held to its start. Buffers of whole numbers are copied. Training goes on from θ, as if there
    were no average. Validation is of the average, and checkpoints hold it as their ``state_dict``, for ``test``,
    ``predict`` and ``load``; θ lies beside it, and a run goes on from there bit for bit. Pictures show θ until the run ends.

    Lightning's EMAWeightAveraging will not do. Given a checkpoint to test after training, as ``fit`` ends with, it goes back
    to θ; it averages counters; and it copies the learner with all that it refers to: by the command line's optimizer the
    trainer and the data, which fails where there are several processes.

    Args:
        decay: how much of the average a meta-step leaves, at least 0 and below 1.

    Raises:
        UsageError: for another decay.

    Source of the first steps' d: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"decay of MovingAverage must be at least 0 and below 1, but is {decay}")
        self.decay = decay
        self._average: list[Tensor] = []  # of ``_tensors``; θ while the learner has the average
        self._learner_has_it = False
        self._averaged = self._step = 0  # states so far, and the meta-step of the last

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # it was skipped
            return
        current = _tensors(pl_module)
        if not self._average:
            self._average, self._averaged = [tensor.clone() for tensor in current], 0
        decay = min(self.decay, (1 + self._averaged) / (10 + self._averaged))
        for average, tensor in zip(self._average, current, strict=True):
            average.copy_(average.lerp(tensor, 1 - decay) if tensor.is_floating_point() else tensor)
        self._averaged, self._step = self._averaged + 1, trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module)

    on_validation_epoch_end = on_train_end = on_validation_epoch_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._average, self._learner_has_it = [], False

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self._averaged, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._averaged, self._step = state_dict["averaged"], state_dict["step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._average:
            return
        for _ in range(2):
            key = "state_dict" if self._learner_has_it else CURRENT_KEY
            checkpoint[key] = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
            self._exchange(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and CURRENT_KEY in checkpoint:  # elsewhere the average is wanted
            self._average = [tensor.clone() for tensor in _tensors(pl_module)]
            pl_module.load_state_dict(checkpoint[CURRENT_KEY])

    def _exchange(self, learner: LightningModule) -> None:
        """Give the learner the average for θ, or θ for the average; nothing as long as there is none."""
        if not self._average:
            return
        for average, tensor in zip(self._average, _tensors(learner), strict=True):
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)
        self._learner_has_it = not self._learner_has_it


def _tensors(learner: LightningModule) -> list[Tensor]:
    """The parameters and buffers that a checkpoint holds, each once, without their graphs."""
    saved = learner.state_dict()
    named = chain(learner.named_parameters(), learner.named_buffers())
    return [tensor.detach() for name, tensor in named if name in saved]
