"""Newton's method for F(φ) = 0, its steps by a linear solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction
from imaml_lightning.inner.line_search import MAX_TRIALS, SLOPE
from imaml_lightning.inner.progress import Progress
from imaml_lightning.linear import GMRES, LinearSolver
from imaml_lightning.problem.function import LinearisedMap
from imaml_lightning.problem.rows import any_left, norm
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class NewtonKrylov:
    """Solve A d = −F roughly, A = ∂F/∂φ ``[task, param, param]``, then φ ← φ + α d with the first α of 1, ½, ¼, … that makes
    ‖F‖ fall enough: ‖F(φ + α d)‖ ≤ (1 − c α) ‖F(φ)‖.

    For F with no minimiser behind it: A need not be symmetric, and solving takes products alone. Near a solution with a regular A
    every step lowers ‖F‖ by the linear solver's rtol at least, or squares it. A task for which no α helps ends with STALLED.

    Args:
        max_steps: accepted steps, at most.
        rtol: stop where ‖F‖ ≤ rtol ‖F(start)‖.
        linear_solver: finds d.

    Cost: two evaluations of F and the linear solver's products a step, each of two backward passes. Source: Brown and Saad (1990),
    "Hybrid Krylov methods for nonlinear systems of equations"; Kelley (2003), chapter 3.
    """

    max_steps: int = 50
    rtol: float = 1e-5
    linear_solver: LinearSolver = GMRES(max_steps=100, rtol=1e-3)  # noqa: RUF009 (it is immutable)

    def __post_init__(self) -> None:
        check_at_least(0, "solver", max_steps=self.max_steps)
        check_fraction("solver", rtol=self.rtol)

    def solve(self, function: Callable[[Tensor], Tensor], start: Tensor) -> Solution:
        """φ with F(φ) = 0 from ``start [task, param]``; the residual is ‖F‖ ``[task]``."""
        phi, progress = start, Progress(start, self.rtol)
        for _ in range(self.max_steps):
            at = LinearisedMap(function, phi)
            value = at.value.detach()
            active = progress.see(phi, value)
            if not any_left(active):
                break
            d = self.linear_solver.solve(at.product, torch.where(active, -value, 0)).value
            alpha, pending, length = torch.ones_like(d[:, :1]), active, norm(value)
            for _ in range(MAX_TRIALS):
                trial = torch.where(pending, phi + alpha * d, phi)
                enough = pending & (norm(function(trial)) <= (1 - SLOPE * alpha) * length)
                phi, pending = torch.where(enough, trial, phi), pending & ~enough
                if not any_left(pending):
                    break
                alpha = alpha / 2
            progress.give_up(pending)
        return progress.solution(phi, function(phi))
