"""Gradient descent with the steps of Barzilai and Borwein."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import dot
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class BarzilaiBorwein(SteppedSolver):
    """φ ← φ − α ∇G(φ) with α from the last step s and the change y of the gradient along it, both ``[task, param]``:

        α = sᵀs / sᵀy and α = sᵀy / yᵀy in turn, the inverses of two averages of the curvature along s

    Needs no knowledge of L. On strongly convex quadratics it converges, far faster than a fixed step; G and ‖∇G‖ rise
    in between. Elsewhere there is no guarantee, as there is no line search: a task whose gradient is no longer finite
    goes back to its last good point. Where sᵀy ≤ 0 (negative curvature) the step is ``lr``.

    Args:
        lr: the first step size, and the one at negative curvature.
        max_steps: gradient evaluations, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.

    Cost: one gradient evaluation a step. Source: Barzilai and Borwein (1988), "Two-point step size gradient methods";
    Dai and Fletcher (2005) for steps in turn.
    """

    lr: float = 0.05

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        phi = start
        s = y = torch.zeros_like(start)
        previous = torch.zeros_like(start)
        progress = Progress(start, self.rtol)
        for step in range(self.max_steps):
            _, gradient = objective.value_and_gradient(phi)
            active = progress.see(phi, gradient)
            if progress.over:
                break
            y = gradient - previous
            sy = dot(s, y)
            alpha = dot(s, s) / sy if step % 2 else sy / dot(y, y)
            # s = 0 in the first step, so that sᵀy = 0 there too.
            alpha = torch.where((sy > 0) & alpha.isfinite(), alpha, self.lr)
            s, previous = -alpha * gradient, gradient
            phi = progress.move(active, phi + s)
        return progress.solution(phi)
