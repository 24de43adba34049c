"""First-order adaptation: the Jacobian dφ/dθ taken as the identity."""

from __future__ import annotations

import torch

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.inner import GradientDescent, InnerSolver
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm


class FirstOrder(Adaptation):
    """φ found by the inner solver, with dφ/dθ = I: the meta-gradient is ∂L_Q/∂φ.

    It is what Implicit gives for λ → ∞, or for a linear solver that stops at u = v/λ; no Hessian products, and no
    gradient to λ. Parameters that are not adapted get their direct gradient only.

    Args:
        inner_solver: finds φ.
        proximal: the regulariser with its strength λ; None is λ = 2.

    Source: Finn, Abbeel, Levine (2017), section 5.2, here on the proximal inner problem.
    """

    constant = True

    def __init__(self, inner_solver: InnerSolver = GradientDescent(), proximal: ProximalTerm | None = None) -> None:
        super().__init__(proximal)
        self.inner_solver = inner_solver

    def forward(self, objective: InnerObjective) -> Adapted:
        with torch.no_grad():
            solution = self.inner_solver.minimise(objective, objective.start())
        theta = objective.theta
        return Adapted(solution.value + (theta - theta.detach()), solution, objective)
