"""The exact inverse, where the problem has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError, check_fraction
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.problem.rows import norm
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class Exact(LinearSolver):
    """u = A⁻¹ v by the closed form that A has for a linear head, A ``[task, param, param]``.

    Args:
        rtol: a task with ‖A u − v‖ ≤ rtol ‖v‖ has converged. u is right to rounding whatever the condition number of A is, but
            its residual in float32 is up to 1e-7 times that number.

    Raises:
        UsageError: when solving, if A has no closed form.

    Cost: see ``LinearisedHead.inverse``; one product, for the residual.
    """

    rtol: float = 1e-4

    def __post_init__(self) -> None:
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        if not hasattr(product, "inverse"):
            raise UsageError(
                "the linear solver Exact needs a matrix with a closed form: use Dense or ConjugateGradient"
            )
        u = product.inverse()(rhs)
        length, residual = norm(rhs), norm(rhs - product(u))
        relative = torch.where(length > 0, residual / length, 0).squeeze(1)
        result = torch.where(relative <= self.rtol, Result.CONVERGED, Result.BREAKDOWN)
        result = torch.where(relative.isfinite(), result, Result.NONFINITE)
        return Solution(u, result, torch.ones_like(result), relative, torch.full_like(relative, self.rtol))
