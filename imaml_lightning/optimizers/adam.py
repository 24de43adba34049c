"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.optimizers.base import State, TorchRule, decayed, root


@dataclass(frozen=True)
class Adam(TorchRule):
    """m ← β₁ m + (1 − β₁) g,   s ← β₂ s + (1 − β₂) g²,   φ ← φ − lr m̂ / (√ŝ + eps).

    m̂ = m/(1 − β₁ᵗ), ŝ = s/(1 − β₂ᵗ); weight_decay φ is added to g. ``amsgrad`` takes the largest s so far.
    Source: torch.optim.Adam; Kingma and Ba (2015); Reddi et al. (2018).
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    fractions: ClassVar[tuple[str, ...]] = ("beta1", "beta2")
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def start(self, phi: Tensor) -> State:
        zero = torch.zeros_like(phi)
        return {"exp_avg": zero, "exp_avg_sq": zero} | ({"max_exp_avg_sq": zero} if self.amsgrad else {})

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        return self._step(phi, decayed(gradient, phi, self.weight_decay), state, step)

    def _step(self, phi: Tensor, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        m = self.beta1 * state["exp_avg"] + (1 - self.beta1) * g
        s = self.beta2 * state["exp_avg_sq"] + (1 - self.beta2) * g * g
        after, largest = {"exp_avg": m, "exp_avg_sq": s}, s
        if self.amsgrad:
            after["max_exp_avg_sq"] = largest = torch.maximum(state["max_exp_avg_sq"], s)
        scale = root(largest) / (1 - self.beta2**step) ** 0.5 + self.eps
        return phi - self.lr / (1 - self.beta1**step) * m / scale, after


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with the weight decay outside the adaptive step: φ ← (1 − lr weight_decay) φ first.

    Source: torch.optim.AdamW; Loshchilov and Hutter (2019).
    """

    weight_decay: float = 0.01

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        return self._step(phi * (1 - self.lr * self.weight_decay), gradient, state, step)
