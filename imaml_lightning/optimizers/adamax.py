"""Adamax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed


@dataclass(frozen=True)
class Adamax(TorchRule):
    """m ← β₁ m + (1 − β₁) g,   u ← max(β₂ u, |g| + eps),   φ ← φ − lr m / ((1 − β₁ᵗ) u).

    Source: torch.optim.Adamax; Kingma and Ba (2015), section 7.1.
    """

    lr: float = 0.002
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    fractions: ClassVar[tuple[str, ...]] = ("beta1", "beta2")
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_inf")

    def start(self, phi: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(phi), "exp_inf": torch.zeros_like(phi)}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        m = self.beta1 * state["exp_avg"] + (1 - self.beta1) * g
        u = torch.maximum(self.beta2 * state["exp_inf"], g.abs() + self.eps)
        return phi - self.lr / (1 - self.beta1**step) * m / u, {"exp_avg": m, "exp_inf": u}
