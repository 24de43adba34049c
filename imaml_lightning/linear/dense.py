"""A built in full and factorised, for tiny problems and tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_fraction
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.problem.rows import norm
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class Dense(LinearSolver):
    """u = A⁻¹ v, with A ``[task, param, param]`` built column by column; A may be indefinite.

    A task whose A is singular to rounding ends with BREAKDOWN and the least-squares solution of least norm.

    Args:
        rtol: a task with ‖A u − v‖ ≤ rtol ‖v‖ has converged.

    Cost: a product for each parameter and one for the residual, memory task · param², arithmetic task · param³: for
    some hundreds of parameters. Source: LAPACK's ``gesv``, through ``torch.linalg``.
    """

    rtol: float = 1e-4

    def __post_init__(self) -> None:
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        identity = torch.eye(rhs.shape[1], dtype=rhs.dtype, device=rhs.device)
        a = torch.stack([product(column.expand_as(rhs)) for column in identity], dim=2)
        finite = (a.isfinite().all(2) & rhs.isfinite()).all(1, keepdim=True)
        # LAPACK refuses a whole batch for one number that is not finite.
        a = torch.where(finite.unsqueeze(2), a, identity)
        v = torch.where(finite, rhs, 0)

        sizes = torch.linalg.svdvals(a)
        singular = sizes[:, -1:] <= rhs.shape[1] * torch.finfo(rhs.dtype).eps * sizes[:, :1]
        exact, _ = torch.linalg.solve_ex(a, v)
        least_squares = (torch.linalg.pinv(a, hermitian=True) @ v.unsqueeze(2)).squeeze(2)
        u = torch.where(singular, least_squares, exact)

        length = norm(v)
        relative = torch.where(length > 0, norm(product(u) - v) / length, 0)
        result = torch.where(relative <= self.rtol, Result.CONVERGED, Result.STEP_LIMIT)
        result = torch.where(singular & (length > 0), Result.BREAKDOWN, result)
        result = torch.where(finite, result, Result.NONFINITE)
        relative = torch.where(finite, relative, torch.inf)
        steps = torch.full_like(result, rhs.shape[1] + 1)
        columns = (result, steps, relative, torch.full_like(relative, self.rtol))
        return Solution(u, *(column.squeeze(1) for column in columns))
