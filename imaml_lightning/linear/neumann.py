"""The Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction, check_positive
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.linear.refine import MeasuredProduct, Sweep, refine
from imaml_lightning.problem.rows import any_left, dot, norm
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class Neumann(LinearSolver):
    """u = lr Σ_k (I − lr A)ᵏ v, summed as u ← u + lr r, r ← r − lr A r, from u = 0 and r = v ``[task, param]``.

    Converges if and only if ‖I − lr A‖ < 1: all eigenvalues of A between 0 and 2/lr; then by that factor a step. For
    a symmetric A the ratios ‖r⁺‖/‖r‖ can only rise, towards ‖I − lr A‖ (they are a power iteration), so the first one
    that is 1 or more proves that the series diverges. The task then keeps the sum before it, and ends with INDEFINITE
    where rᵀA r < 0 and with BREAKDOWN (lr too large) elsewhere.

    Args:
        lr: the factor of A; below 2/(L + λ), L the largest curvature of the support loss.
        max_steps: products with A, at most; terms of the series after the first.
        rtol: stop where ‖A u − v‖ ≤ rtol ‖v‖.

    Cost: one product a step. Source: Lorraine, Vicol, Duvenaud (2020), "Optimizing millions of hyperparameters by
    implicit differentiation", algorithm 3.
    """

    lr: float = 0.05
    max_steps: int = 10
    rtol: float = 1e-4

    def __post_init__(self) -> None:
        check_positive("linear_solver", lr=self.lr)
        check_at_least(1, "linear_solver", max_steps=self.max_steps)
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        return refine(self._iterate, product, rhs, self.max_steps, self.rtol)

    def _iterate(self, product: MeasuredProduct, r: Tensor, target: Tensor, budget: Tensor) -> Sweep:
        u, residual = torch.zeros_like(r), norm(r)
        result = torch.full_like(residual, Result.STEP_LIMIT, dtype=torch.int64)
        steps = torch.zeros_like(result)
        for _ in range(self.max_steps):
            active = (result == Result.STEP_LIMIT) & (residual > target) & (steps < budget)
            if not any_left(active):
                break
            ar = product(torch.where(active, r, 0))
            r_new = r - self.lr * ar
            residual_new = norm(r_new)
            steps = steps + active
            diverges = torch.where(dot(r, ar) < 0, Result.INDEFINITE, Result.BREAKDOWN)
            result = torch.where(active & (residual_new >= residual), diverges, result)
            result = torch.where(active & ~residual_new.isfinite(), Result.NONFINITE, result)
            active = active & (result == Result.STEP_LIMIT)

            u = torch.where(active, u + self.lr * r, u)
            r = torch.where(active, r_new, r)
            residual = torch.where(active, residual_new, residual)
        return Sweep(u, result, steps, residual)
