"""Adam."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_fraction, check_positive
from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class Adam(SteppedSolver):
    """Steps of about lr in every coordinate, whatever the scale of its gradient g ``[task, param]``:

        m ← β₁ m + (1 − β₁) g,   s ← β₂ s + (1 − β₂) g²,   φ ← φ − lr · m̂/(√ŝ + eps),   m̂ = m/(1 − β₁ᵏ), ŝ = s/(1 −
        β₂ᵏ)

    Sturdy far from a minimiser, with no need to know L. With a fixed lr it ends in circles of about lr and so seldom
    meets a small rtol. A task whose gradient is no longer finite goes back to its last good point.

    Args:
        lr: step size.
        max_steps: gradient evaluations, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.
        beta1: memory of the mean gradient, in [0, 1).
        beta2: memory of the mean square, in [0, 1).
        eps: keeps the quotient finite.

    Cost: one gradient evaluation a step. Source: Kingma and Ba (2015), algorithm 1.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("inner_solver", eps=self.eps)
        check_fraction("inner_solver", beta1=self.beta1, beta2=self.beta2)

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        phi = start
        m = s = torch.zeros_like(start)
        progress = Progress(start, self.rtol)
        for k in range(1, self.max_steps + 1):
            _, gradient = objective.value_and_gradient(phi)
            active = progress.see(phi, gradient)
            if progress.over:
                break
            m = self.beta1 * m + (1 - self.beta1) * gradient
            s = self.beta2 * s + (1 - self.beta2) * gradient.square()
            step = m / (1 - self.beta1**k) / ((s / (1 - self.beta2**k)).sqrt() + self.eps)
            phi = progress.move(active, phi - self.lr * step)
        return progress.solution(phi)
