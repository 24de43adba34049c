"""The conjugate gradient method, plain or preconditioned, on all tasks of a chunk at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.linear.preconditioner import Preconditioner
from imaml_lightning.linear.refine import MeasuredProduct, Sweep, refine
from imaml_lightning.problem.rows import any_left, dot, norm, select
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Minimises ½ uᵀA u − vᵀu over growing Krylov spaces, from u = 0; for positive definite A ``[task, param, param]``.

    The error in the A-norm falls by at least (√κ − 1)/(√κ + 1) a step, κ the condition number of A, or of M⁻¹A with a
    preconditioner M. Every task has its own step sizes and stops for itself: by tolerance, at the step limit, at
    negative curvature (pᵀA p < 0: the iterate before it is returned, as in Steihaug's method), or at a number that is
    not finite. Where A is singular and v outside its range there is no solution, and iterates run away: a task that
    breaks off farther from one than it began goes back to its iterate of least residual.

    Args:
        max_steps: products with A, at most. The paper uses 5.
        rtol: stop where ‖A u − v‖ ≤ rtol ‖v‖.
        preconditioner: M; none if not given.

    Cost: one product a step, those of the preconditioner before, and one where the residual is so small that rounding
    could have spoilt it. Source: Hestenes and Stiefel (1952); Nocedal and Wright, algorithm 5.3.
    """

    max_steps: int = 5
    rtol: float = 1e-4
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        check_at_least(1, "linear_solver", max_steps=self.max_steps)
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        inverse = self.preconditioner.inverse(product, rhs) if self.preconditioner else _identity

        def iterate(product: MeasuredProduct, r: Tensor, target: Tensor, budget: Tensor) -> Sweep:
            u, p = torch.zeros_like(r), inverse(r)
            rz, residual = dot(r, p), norm(r)
            good, least = u, residual
            result = torch.full_like(rz, Result.STEP_LIMIT, dtype=torch.int64)
            steps = torch.zeros_like(result)
            for _ in range(self.max_steps):
                active = (result == Result.STEP_LIMIT) & (residual > target) & (steps < budget)
                if not any_left(active):
                    break
                ap = product(torch.where(active, p, 0))
                pap = dot(p, ap)
                steps = steps + active
                result = torch.where(active, _judge(pap / dot(p, p), product.scale), result)
                active = active & (result == Result.STEP_LIMIT)

                alpha = rz / pap
                r_new = r - alpha * ap
                result = torch.where(active & ~norm(r_new).isfinite(), Result.NONFINITE, result)
                active = active & (result == Result.STEP_LIMIT)
                u = select(active, u + alpha * p, u)
                r = select(active, r_new, r)
                z = inverse(r)
                previous, rz, residual = rz, dot(r, z), norm(r)
                nearer = residual < least
                good, least = torch.where(nearer, u, good), torch.where(nearer, residual, least)
                p = select(active, z + rz / previous * p, p)
            return Sweep(u, result, steps, residual, good)

        return refine(iterate, product, rhs, self.max_steps, self.rtol)


def _identity(r: Tensor) -> Tensor:
    return r


def _judge(curvature: Tensor, scale: Tensor) -> Tensor:
    """What pᵀA p / pᵀp along a direction says: go on (STEP_LIMIT so far), or stop with a code.

    ``scale`` is a lower bound of ‖A‖: what is 0 to rounding beside it is no curvature.
    """
    rounding = torch.finfo(scale.dtype).eps * scale
    code = torch.full_like(curvature, Result.STEP_LIMIT, dtype=torch.int64)
    code = torch.where(curvature < 0, Result.INDEFINITE, code)
    code = torch.where(curvature.abs() <= rounding, Result.BREAKDOWN, code)
    return torch.where(curvature.isfinite(), code, Result.NONFINITE)
