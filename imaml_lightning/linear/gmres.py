"""The generalised minimal residual method, for systems that need not be symmetric."""

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
class GMRES(LinearSolver):
    """Minimises ‖A u − v‖ over growing Krylov spaces, from u = 0; for any A ``[task, param, param]``.

    The residual never rises, and falls fast where the eigenvalues of A lie in few clusters away from 0: that of
    A = I − J with ‖J‖ < 1, as at a fixed point, by at least ‖J‖ a step. Unlike short recurrences it keeps every direction.
    After ``restart`` of them it starts anew from where it is, and then may stand still; raise ``restart`` where it does. A
    task ends by tolerance, at the step limit, with BREAKDOWN where A is singular on its Krylov space (with a least-squares
    solution there), or at a number that is not finite.

    Args:
        max_steps: products with A, at most.
        rtol: stop where ‖A u − v‖ ≤ rtol ‖v‖.
        restart: directions that are kept; memory is restart · task · param numbers.

    Cost: one product a step and k inner products in its k-th, and one product for each restart and at the end, to measure the
    residual. Source: Saad and Schultz (1986), "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
    systems"; the letters are those of Saad (2003), algorithm 6.9 and section 6.5.3.
    """

    max_steps: int = 100
    rtol: float = 1e-4
    restart: int = 50

    def __post_init__(self) -> None:
        check_at_least(1, "linear_solver", max_steps=self.max_steps, restart=self.restart)
        check_fraction("linear_solver", rtol=self.rtol)

    def solve(self, product: Product, rhs: Tensor) -> Solution:
        return refine(self._iterate, product, rhs, self.max_steps, self.rtol, margin=torch.inf)

    def _iterate(self, product: MeasuredProduct, r: Tensor, target: Tensor, budget: Tensor) -> Sweep:
        residual = norm(r)
        v = [torch.where(residual > 0, r / residual, 0)]
        gamma = [residual]  # the right-hand side of the small problem, its last entry the residual
        columns: list[list[Tensor]] = []  # of the triangular factor of Hessenberg's matrix
        rotations: list[tuple[Tensor, Tensor]] = []
        result = torch.full_like(residual, Result.STEP_LIMIT, dtype=torch.int64)
        steps = torch.zeros_like(result)
        tiny = torch.finfo(r.dtype).eps * r.shape[1]
        for _ in range(min(self.max_steps, self.restart)):
            active = (result == Result.STEP_LIMIT) & (residual > target) & (steps < budget)
            if not any_left(active):
                break
            # Arnoldi: A V = V⁺ H, H Hessenberg, by Gram and Schmidt, twice, which is orthogonal to rounding.
            w = product(torch.where(active, v[-1], 0))
            steps = steps + active
            h = [torch.zeros_like(residual) for _ in v]
            for _ in range(2):
                for i, vi in enumerate(v):
                    overlap = dot(w, vi)
                    w, h[i] = w - overlap * vi, h[i] + overlap
            below = norm(w)
            result = torch.where(active & ~below.isfinite(), Result.NONFINITE, result)

            # The rotations before, applied to the new column of H, and one that makes it triangular.
            for i, (c, s) in enumerate(rotations):
                h[i], h[i + 1] = c * h[i] + s * h[i + 1], c * h[i + 1] - s * h[i]
            diagonal = torch.hypot(h[-1], below)
            result = torch.where(active & (diagonal <= tiny * product.scale), Result.BREAKDOWN, result)
            active = active & (result == Result.STEP_LIMIT)
            # A task that has ended gets columns of the identity, which leave its solution alone.
            c, s = torch.where(active, h[-1] / diagonal, 1), torch.where(active, below / diagonal, 0)
            columns.append([*(torch.where(active, each, 0) for each in h[:-1]), torch.where(active, diagonal, 1)])
            rotations.append((c, s))
            gamma[-1:] = [torch.where(active, c * gamma[-1], 0), torch.where(active, -s * gamma[-1], gamma[-1])]
            residual = gamma[-1].abs()
            v.append(torch.where(active & (below > tiny * product.scale), w / below, 0))
        return Sweep(_combine(columns, gamma, v, torch.zeros_like(r)), result, steps, residual)


def _combine(columns: list[list[Tensor]], gamma: list[Tensor], v: list[Tensor], u: Tensor) -> Tensor:
    """Σ yᵢ vᵢ with R y = γ, by back substitution."""
    gamma = gamma[: len(columns)]
    for k in reversed(range(len(columns))):
        y = gamma[k] / columns[k][k]
        gamma[:k] = [g - y * r for g, r in zip(gamma[:k], columns[k], strict=False)]
        u = u + y * v[k]
    return u
