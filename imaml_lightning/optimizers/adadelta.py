"""Adadelta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed, root


@dataclass(frozen=True)
class Adadelta(TorchRule):
    """s ← ρ s + (1 − ρ) g²,   d = √(a + eps) / √(s + eps) · g,   a ← ρ a + (1 − ρ) d²,   φ ← φ − lr d.

    Source: torch.optim.Adadelta; Zeiler (2012).
    """

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
    fractions: ClassVar[tuple[str, ...]] = ("rho",)
    moments: ClassVar[tuple[str, ...]] = ("square_avg", "acc_delta")

    def start(self, phi: Tensor) -> State:
        return {"square_avg": torch.zeros_like(phi), "acc_delta": torch.zeros_like(phi)}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        s = self.rho * state["square_avg"] + (1 - self.rho) * g * g
        d = root(state["acc_delta"] + self.eps) / root(s + self.eps) * g
        a = self.rho * state["acc_delta"] + (1 - self.rho) * d * d
        return phi - self.lr * d, {"square_avg": s, "acc_delta": a}
