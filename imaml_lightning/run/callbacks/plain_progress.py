"""PlainProgress: one line a validation, for logs and pipes, where a progress bar would be noise."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from imaml_lightning.run.callbacks.figures_line import Clock, last_figures, meta_steps


class PlainProgress(Callback):
    """Prints the meta-step, the elapsed time, the time left and the newest figures after each validation."""

    def __init__(self) -> None:
        self._clock = Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = Clock(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        done, total = trainer.global_step, meta_steps(trainer)
        count = f"{done}" if total is None else f"{done}/{total}"
        times = [time for time in (self._clock.passed(), self._clock.left(done, total)) if time]
        print(f"meta-step {count}, {', '.join(times)}: {last_figures(trainer)}", flush=True)
