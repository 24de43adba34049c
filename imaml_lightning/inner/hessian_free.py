"""Hessian-free optimisation: Newton's method with truncated conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction, check_positive
from imaml_lightning.inner.base import InnerSolver
from imaml_lightning.inner.line_search import Point, backtrack
from imaml_lightning.inner.progress import Progress
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.linear.base import Product
from imaml_lightning.problem.base import Linearised, Objective
from imaml_lightning.problem.curvature import Curvature, GaussNewton
from imaml_lightning.problem.rows import any_left, dot
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class HessianFree(InnerSolver):
    """Solve (C + μ I) d = −∇G(φ) roughly, then φ ← φ + α d; the solver of the paper's "iMAML-HF".

    C ``[task, param, param]`` is the ``curvature`` of G at φ, used through its products alone. Each task has its own μ
    (Levenberg-Marquardt): it shrinks where G falls as the quadratic model says, and grows where it does not. With the
    Hessian for C, conjugate gradients stop at negative curvature and d is what they have, or −∇G if that is nothing.
    Quadratic convergence near a minimiser as μ → 0 and cg_rtol → 0. A task for which no α helps ends with STALLED:
    it is as good as the arithmetic allows.

    Args:
        curvature: C; its own damping is added to μ.
        damping: the first μ, added to the diagonal as it is, beside λ.
        cg_steps: products of one step, at most.
        cg_rtol: the linear system is solved to this relative residual.
        max_steps: accepted steps, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.

    Cost: two gradient evaluations and at most cg_steps products a step; a product costs about two gradient evaluations.
    Source: Martens (2010), "Deep learning via Hessian-free optimization"; Nocedal and Wright, algorithm 7.1 and
    section 10.3.
    """

    curvature: Curvature = GaussNewton()  # noqa: RUF009 (it is immutable)
    damping: float = 0.1
    cg_steps: int = 10
    cg_rtol: float = 0.1
    max_steps: int = 5
    rtol: float = 0.0

    def __post_init__(self) -> None:
        check_positive("inner_solver", damping=self.damping)
        check_at_least(1, "inner_solver", cg_steps=self.cg_steps)
        check_at_least(0, "inner_solver", max_steps=self.max_steps)
        check_fraction("inner_solver", cg_rtol=self.cg_rtol, rtol=self.rtol)

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        at = Point(start, *objective.value_and_gradient(start))
        one = torch.ones_like(start[:, :1])
        mu = self.damping * one
        cg = ConjugateGradient(self.cg_steps, self.cg_rtol)
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            active = progress.see(at.phi, at.gradient)
            if not any_left(active):
                break
            local = objective.linearise(at.phi)
            d = cg.solve(self._damped(local, mu), torch.where(active, -at.gradient, 0)).value
            d = torch.where((d == 0).all(1, keepdim=True), -at.gradient, d)
            before, slope = at, dot(at.gradient, d)
            at, alpha = backtrack(objective, at, d, one, active)
            progress.give_up(active & (alpha == 0))

            # Conjugate gradients from 0 give dᵀ(C + μ I) d = −dᵀ∇G, so the model's change at α d needs no product.
            promised = (alpha - alpha.square() / 2) * slope
            ratio = (at.value - before.value).unsqueeze(1) / promised
            mu = torch.where(ratio > 0.75, mu * 2 / 3, torch.where(ratio < 0.25, mu * 3 / 2, mu))
        return progress.solution(at.phi, at.gradient)

    def _damped(self, local: Linearised, mu: Tensor) -> Product:
        """u ↦ (C + μ I) u."""
        return lambda u: self.curvature.product(local, u) + mu * u
