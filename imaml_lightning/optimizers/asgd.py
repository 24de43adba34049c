"""Averaged stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed


@dataclass(frozen=True)
class ASGD(TorchRule):
    """φ ← (1 − lambd η) φ − η g,   η = lr/(1 + lambd lr (t − 1))^alpha.

    The average of φ from step t0 on is kept in the state as ``ax``; φ itself is what torch.optim trains as well.
    Source: torch.optim.ASGD; Polyak and Juditsky (1992).
    """

    lr: float = 0.01
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6
    weight_decay: float = 0.0
    moments: ClassVar[tuple[str, ...]] = ("ax",)

    def start(self, phi: Tensor) -> State:
        return {"ax": phi}

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        eta = self.lr / (1 + self.lambd * self.lr * (step - 1)) ** self.alpha
        phi = phi * (1 - self.lambd * eta) - eta * g
        return phi, {"ax": state["ax"] + (phi - state["ax"]) / max(1, step - 1 - self.t0)}
