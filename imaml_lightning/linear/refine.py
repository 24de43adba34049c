"""Iterations on A u = v whose residual is measured again where rounding may have corrupted it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imaml_lightning.linear.base import Product
from imaml_lightning.problem.rows import any_left, may_sync, norm
from imaml_lightning.problem.solution import Result, Solution

#: A recurrence's residual is measured once it is below this many times the bound of its rounding error.
MARGIN = 10


class Sweep(NamedTuple):
    """What an iteration on A d = r, from d = 0, came to."""

    value: Tensor  # d [task, param]
    result: Tensor  # [task, 1]; STEP_LIMIT where the budget ran out
    steps: Tensor  # [task, 1]
    residual: Tensor  # [task, 1], ‖A d − r‖ as its recurrence has it
    good: Tensor | None = None  # [task, param], where to go back to if d proves to be no better than 0; None is 0


class MeasuredProduct:
    """A as a function that remembers the largest ‖A p‖/‖p‖ met: ``scale [task, 1]``, a lower bound of ‖A‖."""

    def __init__(self, product: Product, rhs: Tensor) -> None:
        self.product = product
        self.scale = torch.zeros_like(rhs[:, :1])

    def __call__(self, p: Tensor) -> Tensor:
        ap = self.product(p)
        gain = norm(ap) / norm(p)
        self.scale = torch.where(gain.isfinite(), torch.maximum(self.scale, gain), self.scale)
        return ap


class Method(Protocol):
    """An iteration on A d = r until ‖A d − r‖ ≤ target ``[task, 1]`` or ``budget [task, 1]`` products are spent."""

    def __call__(self, product: MeasuredProduct, r: Tensor, target: Tensor, budget: Tensor) -> Sweep: ...


def refine(
    method: Method, product: Product, rhs: Tensor, max_steps: int, rtol: float, margin: float = MARGIN
) -> Solution:
    """Iterate from 0; where the recurrence's residual may be rounding, measure it, and go on if it was wrong.

    In k steps the recurrence drifts from the true residual by at most about k·eps·(‖A‖ ‖u‖ + ‖v‖), so well above this its
    residual is as good as a measured one. Below, and where it broke off, one more product measures it (it is not counted
    as a step), and a task that claimed too much starts anew on A d = v − A u with the steps it has left. A task that was
    led away from the solution goes back to its last good point, where one more product must confirm it, else to where it
    began, and ends with BREAKDOWN or as it broke off. With margin = ∞ all residuals are measured. Within ``rows.no_sync``
    the product is always spent, and no task starts anew.

    Source: Greenbaum (1997), "Estimating the attainable accuracy of recursively computed residual methods"; van der
    Vorst and Ye (2000), "Residual replacement strategies for Krylov subspace iterative methods".
    """
    length = residual = norm(rhs)
    target, eps = rtol * length, torch.finfo(rhs.dtype).eps
    product = MeasuredProduct(product, rhs)
    u, r = torch.zeros_like(rhs), rhs
    result = torch.where(residual.isfinite(), Result.STEP_LIMIT, Result.NONFINITE)
    steps, pending = torch.zeros_like(result), result == Result.STEP_LIMIT
    for _ in range(max_steps if may_sync() else 1):
        if not any_left(pending):
            break
        sweep = method(product, torch.where(pending, r, 0), target, torch.where(pending, max_steps - steps, 0))
        u_before, before, u = u, norm(r), torch.where(pending, u + sweep.value, u)
        steps = steps + torch.where(pending, sweep.steps, 0)
        result = torch.where(pending, sweep.result, result)
        residual = torch.where(pending, sweep.residual, residual)

        drift = margin * steps * eps * (product.scale * norm(u) + length)
        broken = pending & (result > Result.STEP_LIMIT)
        doubtful = pending & (residual < drift) & ~broken
        if not any_left(doubtful | broken):
            break
        r = rhs - product(u)
        residual = torch.where(doubtful | broken, norm(r), residual)
        worse = (doubtful | broken) & ~(residual <= before)
        result = torch.where(doubtful, torch.where(worse, Result.BREAKDOWN, Result.STEP_LIMIT), result)
        if may_sync() and sweep.good is not None and any_left(worse):
            good = torch.where(worse, u_before + sweep.good, u)
            confirmed = norm(rhs - product(good))
            back = worse & (confirmed <= before)
            u, residual = torch.where(back, good, u), torch.where(back, confirmed, residual)
            worse = worse & ~back
        u, residual = torch.where(worse, u_before, u), torch.where(worse, before, residual)
        pending = doubtful & (result == Result.STEP_LIMIT) & (residual > target) & (steps < max_steps)
    return _reported(u, result, steps, residual, length, rtol)


def _reported(u: Tensor, result: Tensor, steps: Tensor, residual: Tensor, length: Tensor, rtol: float) -> Solution:
    """The solution whose columns ``[task, 1]`` these are; ``length`` is ‖v‖."""
    result = torch.where((result == Result.STEP_LIMIT) & (residual <= rtol * length), Result.CONVERGED, result)
    result = torch.where(residual.isfinite(), result, Result.NONFINITE)
    relative = torch.where(length == 0, 0, residual / length)
    columns = (result, steps, relative, torch.full_like(relative, rtol))
    return Solution(u, *(column.squeeze(1) for column in columns))
