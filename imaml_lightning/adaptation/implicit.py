"""Implicit adaptation: the gradient of the inner *solution*, by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.adaptation.base import Adaptation, Adapted, LinearSolve
from imaml_lightning.inner import GradientDescent, InnerSolver
from imaml_lightning.linear import ConjugateGradient, LinearSolver
from imaml_lightning.problem.curvature import Curvature, GaussNewton, Operator
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.proximal import ProximalTerm


class Implicit(Adaptation):
    """iMAML: φ*(θ) = argmin_φ G(φ, θ), differentiated where it stands, however it was found.

    At φ*, ∇_φ G = 0, so for every tensor m on which G depends (θ, λ, features, parameters that are not adapted):

        A u = v,  A ≈ ∇²_φφ G,  v = ∂L_Q/∂φ*;     dL_Q/dm = ∂L_Q/∂m − (∂/∂m ∇_φ G)ᵀ u

    With m = θ this is (I + H/λ)⁻¹ v. Memory does not grow with the number of inner steps. Two errors decide how
    good the gradient is, and both are reported for each task: ‖∇_φ G‖ at φ, and ‖A u − v‖ / ‖v‖.

    Args:
        inner_solver: finds φ*.
        linear_solver: solves A u = v in the backward pass.
        curvature: what A is: ``GaussNewton`` (positive definite; the default) or ``Hessian`` (exact).
        proximal: the regulariser with its strength λ; None is λ = 2.

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
        super().__init__(proximal)
        self.inner_solver = inner_solver
        self.linear_solver = linear_solver
        self.curvature = curvature

    def forward(self, objective: InnerObjective) -> Adapted:
        with torch.no_grad():
            solution = self.inner_solver.minimise(objective, objective.start())
        at, linear_solve = objective.linearise(solution.value), LinearSolve()
        adapted = Adapted(solution.value, solution, objective, at=at, linear_solve=linear_solve)
        if torch.is_grad_enabled():
            system = LinearSystem(Operator(self.curvature, at), self.linear_solver, linear_solve)
            adapted.phi = _ImplicitLayer.apply(solution.value, system, *objective.dependencies())
        return adapted


@dataclass
class LinearSystem:
    """A u = v with the solver for it, and where the report goes. It knows no φ of any graph, so it closes no cycle."""

    operator: Operator
    solver: LinearSolver
    report: LinearSolve

    def solve(self, v: Tensor) -> Tensor:
        """u ``[task, param]``."""
        solution = self.report.solution = self.solver.solve(self.operator, v)
        # A solver answers what is not a number by u = 0; the meta-gradient must not look sound because of it.
        return torch.where(v.isfinite().all(1, keepdim=True), solution.value, torch.nan)


class _ImplicitLayer(torch.autograd.Function):
    """φ* as a function of the tensors m on which ∇_φ G(φ*, m) = 0 depends."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, system: LinearSystem, *dependencies: Tensor) -> Tensor:
        ctx.system, ctx.dependencies = system, dependencies
        return phi.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        u = ctx.system.solve(v)
        # Naming the inputs keeps autograd from walking back to φ as well, which would cost one more Hessian product.
        # The graph is kept because the caller may come again (retain_graph=True); it goes when the layer's output goes.
        gradient = ctx.system.operator.at.gradient
        with full_precision(u.device):
            pulled = torch.autograd.grad(gradient, ctx.dependencies, -u, retain_graph=True, allow_unused=True)
        return None, None, *pulled
