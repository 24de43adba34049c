"""RMSprop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed, off, root


@dataclass(frozen=True)
class RMSprop(TorchRule):
    """s ← α s + (1 − α) g²,   φ ← φ − lr g / (√s + eps).

    ``centered`` subtracts the square of the mean gradient from s; ``momentum`` sums steps: b ← momentum b + g/(√s + eps).
    Source: torch.optim.RMSprop; Hinton, lecture 6e of his Coursera course; Graves (2013).
    """

    lr: float = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    fractions: ClassVar[tuple[str, ...]] = ("alpha",)
    moments: ClassVar[tuple[str, ...]] = ("square_avg",)

    def start(self, phi: Tensor) -> State:
        names = ["square_avg", *["grad_avg"] * self.centered, *["momentum_buffer"] * (not off(self.momentum))]
        return {name: torch.zeros_like(phi) for name in names}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        s = self.alpha * state["square_avg"] + (1 - self.alpha) * g * g
        after, variance = {"square_avg": s}, s
        if self.centered:
            after["grad_avg"] = mean = self.alpha * state["grad_avg"] + (1 - self.alpha) * g
            variance = s - mean * mean
        move = g / (root(variance) + self.eps)
        if not off(self.momentum):
            after["momentum_buffer"] = move = self.momentum * state["momentum_buffer"] + move
        return phi - self.lr * move, after
