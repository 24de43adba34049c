"""KeepLast: last.ckpt, from which a run goes on as if it had never stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from imaml_lightning.errors import Stopped
from imaml_lightning.run.signals import Signals


class KeepLast(Callback):
    """Saves last.ckpt every ``every`` meta-steps, before every validation, at the end, and when a signal asks to stop.

    The one before it stays as previous.ckpt, in case the disk damages the newest.
    """

    def __init__(self, folder: Path, every: int, signals: Signals) -> None:
        self.path, self.every, self.signals = folder / "last.ckpt", every, signals
        self._before_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.defer(getattr(trainer.strategy.launcher, "procs", []))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if fetcher is not None and loop._should_check_val_fx(fetcher):
            return  # it is saved, and the run stopped, when validation starts
        stop = self._asked_to_stop(trainer)
        last_batch = loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
        if stop or last_batch or trainer.global_step % self.every == 0:
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._before_validation = True
            self._save(trainer)
            self._before_validation = False
            if self._asked_to_stop(trainer):
                self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._asked_to_stop(trainer):
            self._stop(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._before_validation:
            # Lightning validates after a resume only if it was stopped inside a validation step; else the figures
            # of this validation, and the best checkpoint that may follow from them, would be missing.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            progress["ready"] = progress["started"] = progress["processed"] + 1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.leave()

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        """Whether a signal has reached this rank, or any other."""
        asked = self.signals.received is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            link = self.path.with_name(".previous.ckpt.link.part")
            with contextlib.suppress(OSError):  # there is no last.ckpt yet, or the disk knows no links
                link.unlink(missing_ok=True)
                os.link(self.path, link)
                os.replace(link, self.path.with_name("previous.ckpt"))
        trainer.save_checkpoint(self.path)

    def _stop(self, trainer: Trainer) -> None:
        number = self.signals.received or signal.SIGTERM
        raise Stopped(
            number,
            f"stopped by {signal.Signals(number).name} after meta-step {trainer.global_step}: "
            f"go on with python -m imaml_lightning fit --ckpt_path {self.path}",
        )
