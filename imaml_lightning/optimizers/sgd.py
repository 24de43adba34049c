"""Stochastic gradient descent, with momentum or Nesterov's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers.base import State, TorchRule, decayed, off


@dataclass(frozen=True)
class SGD(TorchRule):
    """g ← g + weight_decay φ;   b ← momentum b + (1 − dampening) g (b = g at first);   φ ← φ − lr b.

    With ``nesterov`` the step is lr (g + momentum b). Source: torch.optim.SGD; Sutskever et al. (2013).
    """

    lr: float = 0.1
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (off(self.momentum) or not off(self.dampening)):
            raise UsageError("nesterov needs momentum above 0 and dampening 0: set optimizer.momentum")

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        g = decayed(gradient, phi, self.weight_decay)
        if off(self.momentum):
            return phi - self.lr * g, state
        b = state.get("momentum_buffer")
        b = g if b is None else self.momentum * b + (1 - self.dampening) * g
        return phi - self.lr * (g + self.momentum * b if self.nesterov else b), {"momentum_buffer": b}
