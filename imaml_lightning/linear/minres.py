"""The minimal residual method, for symmetric systems that may be indefinite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction
from imaml_lightning.linear.base import LinearSolver, Product
from imaml_lightning.linear.refine import MeasuredProduct, Sweep, refine
from imaml_lightning.problem.rows import any_left, dot, norm
from imaml_lightning.problem.solution import Result, Solution


@dataclass(frozen=True)
class Minres(LinearSolver):
    """Minimises ‖A u − v‖ over growing Krylov spaces, from u = 0; for any symmetric A ``[task, param, param]``.

    The residual never rises. For positive definite A it falls as fast as with conjugate gradients; for an indefinite
    one with condition number κ by at least (κ − 1)/(κ + 1) every two steps. Where H + λI is indefinite φ is no
    minimiser and the implicit gradient is that of a saddle point: MINRES solves its system, but cannot make it mean
    more. For a singular A with v outside its range it ends with BREAKDOWN near a least-squares solution, or at the step
    limit; a task that rounding has led astray goes back to the iterate with the least bound of its residual.

    Args:
        max_steps: products with A, at most.
        rtol: stop where ‖A u − v‖ ≤ rtol ‖v‖.

    Cost: one product a step, and one to measure the residual: rounding moves the recurrence's by up to κ² eps, where
    with conjugate gradients it is κ eps (Sleijpen, van der Vorst, Modersitzki, 2000). So in float32 κ should be below
    1e3. Source: Paige and Saunders (1975), "Solution of sparse indefinite systems of linear equations"; the letters
    are those of Elman, Silvester, Wathen (2014), algorithm 2.4.
    """

    max_steps: int = 10
    rtol: float = 1e-4

    def __post_init__(self) -> None:
        check_at_least(1, "linear_solver", max_steps=self.max_steps)
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        return refine(self._iterate, product, rhs, self.max_steps, self.rtol, margin=torch.inf)

    def _iterate(self, product: MeasuredProduct, r: Tensor, target: Tensor, budget: Tensor) -> Sweep:
        u = v_old = w = w_old = torch.zeros_like(r)
        gamma = eta = norm(r)
        v = torch.where(gamma > 0, r / gamma, 0)
        c = c_old = torch.ones_like(gamma)
        s = s_old = torch.zeros_like(gamma)
        # MINRES is at the mercy of κ² eps, so what is this small beside ‖A‖ is as good as 0.
        tiny = torch.finfo(r.dtype).eps ** 0.75
        # κ is at least ‖A‖ times the widest w, and rounding moves the residual by up to κ² eps of the first one.
        first, eps = eta, torch.finfo(r.dtype).eps
        good, least, widest = u, eta, torch.zeros_like(gamma)
        result = torch.full_like(gamma, Result.STEP_LIMIT, dtype=torch.int64)
        steps = torch.zeros_like(result)
        for _ in range(self.max_steps):
            active = (result == Result.STEP_LIMIT) & (eta.abs() > target) & (steps < budget)
            if not any_left(active):
                break
            # Lanczos: A V = V T, T tridiagonal with δ on its diagonal and γ beside it.
            av = product(torch.where(active, v, 0))
            delta = dot(av, v)
            v_new = av - delta * v - gamma * v_old
            gamma_new = norm(v_new)
            steps = steps + active
            result = torch.where(active & ~(delta.isfinite() & gamma_new.isfinite()), Result.NONFINITE, result)

            # The rotations before, applied to the new column of T; ‖A r‖/‖r‖ = hypot(α₀, c γ⁺), 0 at a least-squares
            # solution.
            alpha0 = c * delta - c_old * s * gamma
            stalled = torch.hypot(alpha0, c * gamma_new) <= tiny * product.scale
            result = torch.where(active & stalled, Result.BREAKDOWN, result)
            active = active & (result == Result.STEP_LIMIT)
            alpha1 = torch.hypot(alpha0, gamma_new)
            alpha2 = s * delta + c_old * c * gamma
            alpha3 = s_old * gamma

            # The new rotation, and the step along w.
            c_new, s_new = alpha0 / alpha1, gamma_new / alpha1
            w_new = (v - alpha3 * w_old - alpha2 * w) / alpha1
            u = torch.where(active, u + c_new * eta * w_new, u)
            eta = torch.where(active, -s_new * eta, eta)
            widest = torch.maximum(widest, norm(w_new))
            bound = eta.abs() + eps * (product.scale * widest).square() * first
            nearer = active & (bound < least)
            good, least = torch.where(nearer, u, good), torch.where(nearer, bound, least)
            v_old, v = v, torch.where(gamma_new > 0, v_new / gamma_new, 0)
            w_old, w, c_old, c, s_old, s, gamma = w, w_new, c, c_new, s, s_new, gamma_new
        return Sweep(u, result, steps, eta.abs(), good)
