"""Polyak's heavy ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_fraction
from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class HeavyBall(SteppedSolver):
    """d ← momentum · d − lr ∇G(φ), φ ← φ + d, from d = 0 ``[task, param]``.

    On a quadratic it converges for lr < 2 (1 + momentum)/(L + λ), with L the largest curvature of the support loss, and
    with the best lr and momentum at the rate (√κ − 1)/(√κ + 1) a step; elsewhere it can cycle. G does not fall at every
    step. A task whose gradient is no longer finite goes back to its last good point.

    Args:
        lr: step size.
        max_steps: gradient evaluations, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.
        momentum: share of the last step that is taken again, in [0, 1).

    Cost: one gradient evaluation a step. Source: Polyak (1964), "Some methods of speeding up the convergence of
    iteration methods".
    """

    lr: float = 0.05
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("inner_solver", momentum=self.momentum)

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        phi = start
        d = torch.zeros_like(start)
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            _, gradient = objective.value_and_gradient(phi)
            active = progress.see(phi, gradient)
            if progress.over:
                break
            d = torch.where(active, self.momentum * d - self.lr * gradient, 0)
            phi = progress.move(active, phi + d)
        return progress.solution(phi)
