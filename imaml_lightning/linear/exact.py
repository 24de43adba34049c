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
    """u = A⁻¹ v by the closed form that A has for a linear head, A ``[task, param, param]``, refined once by its residual.

    Args:
        rtol: a task with ‖A u − v‖ ≤ rtol ‖v‖ has converged; in float32 about 1e-6 is what is reached.

    Raises:
        UsageError: when solving, if A has no closed form.

    Cost: see ``LinearisedHead.inverse``; two products. Source: Higham (2002), Accuracy and Stability of Numerical
    Algorithms, chapter 12, for the refinement.
    """

    rtol: float = 1e-4

    def __post_init__(self) -> None:
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor, start: Tensor | None = None) -> Solution:
        if not hasattr(product, "inverse"):
            raise UsageError(
                "the linear solver Exact needs a matrix with a closed form: use Dense or ConjugateGradient"
            )
        inverse = product.inverse()
        u = inverse(rhs)
        u = u + inverse(rhs - product(u))
        length, residual = norm(rhs), norm(rhs - product(u))
        relative = torch.where(length > 0, residual / length, 0).squeeze(1)
        result = torch.where(relative <= self.rtol, Result.CONVERGED, Result.BREAKDOWN)
        result = torch.where(relative.isfinite(), result, Result.NONFINITE)
        return Solution(u, result, torch.full_like(result, 2), relative, torch.full_like(relative, self.rtol))
