"""Implicit adaptation: the gradient of the inner *solution*, by the implicit function theorem."""

from __future__ import annotations

import torch

from imaml_lightning.adaptation.argmin.layer import Equation, ImplicitLayer, LinearSolve
from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.inner import GradientDescent, InnerSolver
from imaml_lightning.linear import ConjugateGradient, LinearSolver
from imaml_lightning.problem.curvature import Curvature, GaussNewton, Operator
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm


class Implicit(Adaptation):
    """iMAML: φ*(θ) = argmin_φ G(φ, θ), differentiated where it stands, however it was found.

    At φ*, ∇_φ G = 0, so for every tensor m on which G depends (θ, λ, features, parameters that are not adapted):

        A u = v,  A ≈ ∇²_φφ G,  v = ∂L_Q/∂φ*;     dL_Q/dm = ∂L_Q/∂m − (∂/∂m ∇_φ G)ᵀ u

    With m = θ this is (I + H/λ)⁻¹ v. Memory does not grow with the number of inner steps. Two errors decide how
    good the gradient is, and both are reported for each task: ‖∇_φ G‖ at φ, and ‖A u − v‖ / ‖v‖. ``argmin`` is the same for any
    G; the layer is one, ``implicit/layer.py``.

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
            operator, dependencies = Operator(self.curvature, at), objective.dependencies()
            equation = Equation(at.gradient, dependencies, operator, self.linear_solver, linear_solve)
            adapted.phi = ImplicitLayer.apply(solution.value, equation, *dependencies)
        return adapted
