"""Iterations on A u = v that start anywhere and whose word is checked where rounding could spoil it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imaml_lightning.linear.base import Product
from imaml_lightning.problem.rows import looking, norm, some
from imaml_lightning.problem.solution import Result, Solution

#: A recurrence's residual is not taken at its word once it is below this many times the bound of its rounding error.
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
    method: Method,
    product: Product,
    rhs: Tensor,
    start: Tensor | None,
    max_steps: int,
    rtol: float,
    margin: float = MARGIN,
) -> Solution:
    """Iterate from ``start``; where the recurrence's residual may be rounding, measure it, and go on if it was wrong.

    In k steps the recurrence drifts from the true residual by at most about k·eps·(‖A‖ ‖u‖ + ‖v‖), so well above
    this its word is as good as a measurement. Below, and where it broke off, one more product tells (it is not counted
    as a step), and a task that claimed too much starts anew on A d = v − A u with the steps it has left. A task that was
    led away from the solution goes back to its last good point, where one more product must confirm it, else to where it
    began, and ends with BREAKDOWN or as it broke off. With margin = ∞ all residuals are measured. Where nothing may look
    (``rows.unseen``) the product is always spent, and no task starts anew.

    Source: Greenbaum (1997), "Estimating the attainable accuracy of recursively computed residual methods"; van der
    Vorst and Ye (2000), "Residual replacement strategies for Krylov subspace iterative methods".
    """
    length = norm(rhs)
    target, eps = rtol * length, torch.finfo(rhs.dtype).eps
    product = MeasuredProduct(product, rhs)
    u = torch.zeros_like(rhs) if start is None else torch.where(length > 0, start, 0)
    r = rhs if start is None else rhs - product(u)
    residual = norm(r)
    result = torch.where(residual.isfinite(), Result.STEP_LIMIT, Result.NONFINITE)
    steps, pending = torch.zeros_like(result), result == Result.STEP_LIMIT
    for _ in range(max_steps if looking() else 1):
        if not some(pending):
            break
        sweep = method(product, torch.where(pending, r, 0), target, torch.where(pending, max_steps - steps, 0))
        u_before, before, u = u, norm(r), torch.where(pending, u + sweep.value, u)
        steps = steps + torch.where(pending, sweep.steps, 0)
        result = torch.where(pending, sweep.result, result)
        residual = torch.where(pending, sweep.residual, residual)

        drift = margin * steps * eps * (product.scale * norm(u) + length)
        broken = pending & (result > Result.STEP_LIMIT)
        doubtful = pending & (residual < drift) & ~broken
        if not some(doubtful | broken):
            break
        r = rhs - product(u)
        residual = torch.where(doubtful | broken, norm(r), residual)
        worse = (doubtful | broken) & ~(residual <= before)
        result = torch.where(doubtful, torch.where(worse, Result.BREAKDOWN, Result.STEP_LIMIT), result)
        if looking() and sweep.good is not None and some(worse):
            good = torch.where(worse, u_before + sweep.good, u)
            confirmed = norm(rhs - product(good))
            back = worse & (confirmed <= before)
            u, residual = torch.where(back, good, u), torch.where(back, confirmed, residual)
            worse = worse & ~back
        u, residual = torch.where(worse, u_before, u), torch.where(worse, before, residual)
        pending = doubtful & (result == Result.STEP_LIMIT) & (residual > target) & (steps < max_steps)
    result = torch.where((result == Result.STEP_LIMIT) & (residual <= target), Result.CONVERGED, result)
    result = torch.where(residual.isfinite(), result, Result.NONFINITE)
    relative = torch.where(length == 0, 0, residual / length)
    columns = (result, steps, relative, torch.full_like(relative, rtol))
    return Solution(u, *(column.squeeze(1) for column in columns))
