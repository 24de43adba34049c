"""Newton's method with exact steps, for a linear head, and for few parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction
from imaml_lightning.inner.base import InnerSolver
from imaml_lightning.inner.line_search import Point, backtrack
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import any_left
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class Newton(InnerSolver):
    """φ ← φ − α (∇²G)⁻¹ ∇G(φ), exactly, α = 1 unless the line search halves it.

    For a linear head under cross-entropy or a squared error, where G is strongly convex: every task ``[task]`` comes to its one
    minimiser, and the steps converge quadratically. With a squared error the first step is the solution: ridge regression
    with features for inputs, in closed form. No rate to choose. A task for which no α helps ends with STALLED: it is as
    good as the arithmetic allows. By ``argmin`` for any G of few parameters, whose ∇²G is then built in full.

    Args:
        max_steps: at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖.

    Raises:
        UsageError: when solving, if the inverse of ∇²G has no closed form (``Linearised.inverse``).

    Cost: two gradient evaluations of the head and one inverse a step, which grows with examples and outputs and not with
    parameters. Source: Boyd and Vandenberghe (2004), section 9.5; Rasmussen and Williams (2006), algorithm 3.3; for ridge
    regression Bertinetto et al. (2019), "Meta-learning with differentiable closed-form solvers".
    """

    max_steps: int = 20
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        check_at_least(1, "inner_solver", max_steps=self.max_steps)
        check_fraction("inner_solver", rtol=self.rtol)

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        at = Point(start, *objective.value_and_gradient(start))
        one = torch.ones_like(start[:, :1])
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            active = progress.see(at.phi, at.gradient)
            if not any_left(active):
                break
            inverse = objective.linearise(at.phi).inverse()
            at, alpha = backtrack(objective, at, -inverse(at.gradient), one, active)
            progress.give_up(active & (alpha == 0))
        return progress.solution(at.phi, at.gradient)
