"""Adagrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed, root


@dataclass(frozen=True)
class Adagrad(TorchRule):
    """s ← s + g²,   φ ← φ − lr/(1 + (t − 1) lr_decay) · g / (√s + eps).

    Source: torch.optim.Adagrad; Duchi, Hazan, Singer (2011).
    """

    lr: float = 0.01
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    moments: ClassVar[tuple[str, ...]] = ("sum",)

    def start(self, phi: Tensor) -> State:
        return {"sum": torch.zeros_like(phi) + self.initial_accumulator_value}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        s = state["sum"] + g * g
        rate = self.lr / (1 + (step - 1) * self.lr_decay)
        return phi - rate * g / (root(s) + self.eps), {"sum": s}
