"""A callback that does harm at a chosen moment, for the tests of reliability: named on the real command line."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Saboteur(Callback):
    """On ``rank``, in ``hook``, once ``step`` meta-steps are done: does ``act``, one of the methods below.

    Callbacks that options name come before the command line's own, so on_train_batch_end comes before the checkpoint.
    """

    def __init__(self, act: str, step: int, hook: str = "on_train_batch_end", rank: int = 0) -> None:
        self.act, self.step, self.rank = act, step, rank
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            getattr(self, self.act)(pl_module)

    def kill(self, learner: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_before_log(self, learner: LightningModule) -> None:
        """After the callbacks of this meta-step, so after its checkpoint, but before its row of the log."""
        learner.trainer._logger_connector.on_batch_end = lambda: self.kill(learner)

    def terminate(self, learner: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, learner: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def fail(self, learner: LightningModule) -> None:
        raise RuntimeError("sabotage")

    def hang(self, learner: LightningModule) -> None:
        print("hanging", flush=True)
        time.sleep(3600)

    def break_weights(self, learner: LightningModule) -> None:
        next(learner.parameters()).data.fill_(torch.nan)

    def break_optimizer(self, learner: LightningModule) -> None:
        next(iter(learner.optimizers().state.values()))["exp_avg"].fill_(torch.inf)
