"""Rprop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule


@dataclass(frozen=True)
class Rprop(TorchRule):
    """φ ← φ − η sign(g): η grows by ``etaplus`` where g keeps its sign and shrinks by ``etaminus`` where it turns.

    Where it turns no step is taken. The derivative through sign(g) is 0, so dφ/dθ is the identity; derivatives flow to
    lr and to both factors. Source: torch.optim.Rprop; Riedmiller and Braun (1993).
    """

    lr: float = 0.01
    etaminus: float = 0.5
    etaplus: float = 1.2
    step_size_min: float = 1e-6
    step_size_max: float = 50.0
    fractions: ClassVar[tuple[str, ...]] = ("etaminus",)
    moments: ClassVar[tuple[str, ...]] = ("prev", "step_size")

    def start(self, phi: Tensor) -> State:
        return {"prev": torch.zeros_like(phi), "step_size": torch.zeros_like(phi) + self.lr}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        turn = (gradient * state["prev"]).sign()
        factor = torch.where(turn > 0, self.etaplus, torch.where(turn < 0, self.etaminus, torch.ones_like(phi)))
        step_size = (state["step_size"] * factor).clamp(min=self.step_size_min).clamp(max=self.step_size_max)
        gradient = torch.where(turn < 0, 0, gradient)
        return phi - gradient.sign() * step_size, {"prev": gradient, "step_size": step_size}
