"""The Nyström closed form: A u = v solved in a low-rank approximation of A."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.linear.sketch import sketch
from imaml_lightning.problem.rows import norm
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class Nystrom(LinearSolver):
    """u = (U diag(λ) Uᵀ + floor·I)⁻¹ v by the Woodbury identity, for the approximation of A ``[task, param, param]`` of rank
    ``rank`` that ``sketch`` draws; no iteration, and no recurrence to break down.

    Good where A is a multiple of the identity plus few large eigenvalues, as H + λI of a small support set is; exact
    where they are fewer than ``rank``. The residual is measured, so what the approximation misses is reported: a task within
    rtol has converged, another has reached its limit, which is the rank. Where the approximation is not positive definite the
    result is INDEFINITE, or BREAKDOWN if it is singular, and u = 0.

    Args:
        rank: products with A, and columns of U (memory task · param · rank).
        rtol: a task with ‖A u − v‖ ≤ rtol ‖v‖ has converged.
        seed: of the random directions, the same for every task and every solve.

    Cost: rank + 1 products for each solve, and a decomposition of order param · rank². Source: Hataya and Yamada
    (2023), "Nyström method for accurate and scalable implicit differentiation", with random directions for random
    columns.
    """

    rank: int = 10
    rtol: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, "linear_solver", rank=self.rank)
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        sketched = sketch(product, rhs, self.rank, self.seed)
        length = norm(rhs)
        definite = sketched.definite() & length.isfinite() & (length > 0)
        u = torch.where(definite, sketched.inverse_times(rhs), 0)
        relative = torch.where(length == 0, 0, norm(product(u) - rhs) / length)
        result = torch.where(relative <= self.rtol, Result.CONVERGED, Result.STEP_LIMIT)
        singular = sketched.floor.abs() <= 10 * torch.finfo(rhs.dtype).eps * sketched.values.amax(1, keepdim=True)
        reason = torch.where(singular, Result.BREAKDOWN, Result.INDEFINITE)
        result = torch.where((length > 0) & ~definite, reason, result)
        result = torch.where(relative.isfinite(), result, Result.NONFINITE)
        u = torch.where(relative.isfinite(), u, 0)
        steps = torch.full_like(result, sketched.values.shape[1] + 1)
        columns = (result, steps, relative, torch.full_like(relative, self.rtol))
        return Solution(u, *(column.squeeze(1) for column in columns))
