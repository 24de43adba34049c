"""Gradient descent with a fixed step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class GradientDescent(SteppedSolver):
    """φ ← φ − lr ∇_φ G(φ), ``[task, param]``; the regulariser is inside every step.

    Converges for lr < 2/(L + λ), L the largest curvature of the support loss; a task whose gradient is no longer finite
    goes back to its last good point and stays there.

    Args:
        lr: step size. The paper's Omniglot value is 0.1 or smaller.
        max_steps: gradient evaluations, at most. The paper uses 16 (5-way) and 25 (20-way).
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.

    Cost: one gradient evaluation a step. Source: Rajeswaran et al. (2019), algorithm 2 with gradient descent.
    """

    lr: float = 0.1

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        phi = start
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            _, gradient = objective.value_and_gradient(phi)
            active = progress.see(phi, gradient)
            if progress.over:
                break
            phi = progress.move(active, torch.add(phi, gradient, alpha=-self.lr))
        return progress.solution(phi)
