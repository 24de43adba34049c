"""The conjugate gradient method, on all tasks of a chunk at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.linear.base import LinearSolver, Product, dot
from imaml_lightning.solution import Result, Solution


@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Minimises ½ uᵀA u − vᵀu over growing Krylov spaces, from u = 0; for positive definite A.

    The error in the A-norm falls by at least (√κ − 1)/(√κ + 1) a step, κ the condition number. Every task has its
    own step sizes and stops for itself: by tolerance, at the step limit, at negative curvature (pᵀA p < 0: the
    iterate before it is returned, as in Steihaug's method), or at a number that is not finite.

    Args:
        max_steps: products with A, at most. The paper uses 5.
        rtol: stop where ‖A u − v‖ ≤ rtol ‖v‖ (the residual of the recurrence).

    Cost: one product a step. Source: Hestenes and Stiefel (1952); Nocedal and Wright, algorithm 5.2.
    """

    max_steps: int = 5
    rtol: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1, got {self.max_steps}: set linear_solver.max_steps")
        if not 0 <= self.rtol < 1:
            raise UsageError(f"rtol must be in [0, 1), got {self.rtol}: set linear_solver.rtol")

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        u, r, p = torch.zeros_like(rhs), rhs, rhs
        rr = dot(r, r)
        vv, target = rr, self.rtol**2 * rr
        result = torch.where(rr.isfinite(), Result.STEP_LIMIT, Result.NONFINITE)
        steps, scale = torch.zeros_like(result), torch.zeros_like(rr)
        for _ in range(self.max_steps):
            active = (result == Result.STEP_LIMIT) & (rr > target)
            if not active.any():
                break
            ap = product(torch.where(active, p, 0))
            pap = dot(p, ap)
            steps = steps + active
            curvature = pap / dot(p, p)
            scale = torch.where(active, torch.maximum(scale, curvature.abs()), scale)
            result = torch.where(active, _judge(curvature, scale), result)
            active = active & (result == Result.STEP_LIMIT)

            alpha = torch.where(active, rr / pap, 0)
            u = torch.where(active, u + alpha * p, u)
            r = torch.where(active, r - alpha * ap, r)
            previous, rr = rr, dot(r, r)
            p = torch.where(active, r + rr / previous * p, p)
        residual = torch.where(vv > 0, (rr / vv).sqrt(), 0)
        result = torch.where((result == Result.STEP_LIMIT) & (rr <= target), Result.CONVERGED, result)
        result = torch.where(rr.isfinite(), result, Result.NONFINITE)
        tolerance = torch.full_like(residual, self.rtol)
        return Solution(u, *(each.squeeze(1) for each in (result, steps, residual, tolerance)))


def _judge(curvature: Tensor, scale: Tensor) -> Tensor:
    """What pᵀA p / pᵀp along a direction says: go on (STEP_LIMIT so far), or stop with a code.

    ``scale`` is the largest one met so far, a lower bound of ‖A‖: what is 0 to rounding beside it is no curvature.
    """
    rounding = 10 * torch.finfo(scale.dtype).eps * scale
    code = torch.full_like(curvature, Result.STEP_LIMIT, dtype=torch.int64)
    code = torch.where(curvature < 0, Result.INDEFINITE, code)
    code = torch.where(curvature.abs() <= rounding, Result.BREAKDOWN, code)
    return torch.where(curvature.isfinite(), code, Result.NONFINITE)
