"""Implicit adaptation: the gradient of the inner *solution*, by the implicit function theorem."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.inner import GradientDescent, InnerSolver
from imaml_lightning.linear import ConjugateGradient, LinearSolver
from imaml_lightning.problem.curvature import Curvature, GaussNewton
from imaml_lightning.problem.derivatives import Linearisation
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm


class Implicit(Adaptation):
    """iMAML: φ*(θ) = argmin_φ G(φ, θ), differentiated where it stands, however it was found.

    At φ*, ∇_φ G = 0, so for every tensor m on which G depends (θ, λ, parameters that are not adapted):

        A u = v,  A ≈ ∇²_φφ G,  v = ∂L_Q/∂φ*;     dL_Q/dm = ∂L_Q/∂m − (∂/∂m ∇_φ G)ᵀ u

    With m = θ this is (I + H/λ)⁻¹ v. Memory does not grow with the number of inner steps. Two errors decide how
    good the gradient is, and both are reported for each task: ‖∇_φ G‖ at φ, and ‖A u − v‖ / ‖v‖.

    Args:
        inner_solver: finds φ*.
        linear_solver: solves A u = v in the backward pass.
        curvature: what A is: ``GaussNewton`` (positive definite; the default) or ``Hessian`` (exact).
        proximal: the regulariser with its strength λ.

    Source: Rajeswaran, Finn, Kakade, Levine (2019), "Meta-learning with implicit gradients", lemma 1, algorithm 2.
    """

    constant = True

    def __init__(
        self,
        inner_solver: InnerSolver = GradientDescent(),
        linear_solver: LinearSolver = ConjugateGradient(),
        curvature: Curvature = GaussNewton(),
        proximal: ProximalTerm | None = None,
    ) -> None:
        super().__init__(proximal or ProximalTerm())
        self.inner_solver = inner_solver
        self.linear_solver = linear_solver
        self.curvature = curvature

    def forward(self, objective: InnerObjective) -> Adapted:
        with torch.no_grad():
            solution = self.inner_solver.minimise(objective, objective.start())
        at = objective.linearise(solution.value)
        inner = solution.certified(at.gradient.detach().norm(dim=1))
        adapted = Adapted(inner.value, inner, stationarity=at.stationarity())
        if torch.is_grad_enabled():
            # Held strongly it would close a cycle through phi's graph, which then lives until garbage is collected.
            report = weakref.ref(adapted)

            def solve(v: Tensor) -> Tensor:
                linear = self.linear_solver.solve(lambda u: self.curvature.product(at, u), v)
                if (to := report()) is not None:
                    to.linear = linear
                # A solver answers what is not a number by u = 0; the meta-gradient must not look sound because of it.
                return torch.where(v.isfinite().all(1, keepdim=True), linear.value, torch.nan)

            adapted.phi = _ImplicitLayer.apply(inner.value, at, solve, *objective.dependencies())
        return adapted


class _ImplicitLayer(torch.autograd.Function):
    """φ* as a function of the tensors m on which ∇_φ G(φ*, m) = 0 depends."""

    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, at: Linearisation, solve: Callable[[Tensor], Tensor], *dependencies: Tensor
    ) -> Tensor:
        ctx.at, ctx.solve, ctx.dependencies = at, solve, dependencies
        return phi.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        u = ctx.solve(v)
        # Naming the inputs keeps autograd from walking back to φ as well, which would cost one more Hessian product.
        # The graph is kept because the caller may come again (retain_graph=True); it goes when the layer's output goes.
        pulled = torch.autograd.grad(ctx.at.gradient, ctx.dependencies, -u, retain_graph=True, allow_unused=True)
        return None, None, None, *pulled
