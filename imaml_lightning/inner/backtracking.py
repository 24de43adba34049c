"""Gradient descent with a backtracking line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.line_search import Point, backtrack
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import any_left
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class BacktrackingGradientDescent(SteppedSolver):
    """φ ← φ − α ∇G(φ), with the largest α of α₀, α₀/2, α₀/4, … at which Armijo's condition holds; α₀ is twice the last
    α.

    G falls at every step of every task ``[task]``, whatever the curvature, so it cannot diverge; it converges as
    gradient descent does with a well chosen rate. A task for which no α helps ends with STALLED: it is as good as
    the arithmetic allows.

    Args:
        lr: the first step that is tried.
        max_steps: accepted steps, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.

    Cost: about two gradient evaluations a step, as every second one or so is halved once, and one more at the start.
    Source: Armijo (1966); Nocedal and Wright, algorithm 3.1.
    """

    lr: float = 1.0

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        at = Point(start, *objective.value_and_gradient(start))
        alpha = torch.full_like(start[:, :1], self.lr)
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            active = progress.see(at.phi, at.gradient)
            if not any_left(active):
                break
            at, taken = backtrack(objective, at, -at.gradient, alpha, active)
            progress.give_up(active & (taken == 0))
            alpha = torch.where(taken > 0, 2 * taken, alpha)
        return progress.solution(at.phi, at.gradient)
