"""First-order adaptation: the Jacobian dφ/dθ taken as the identity."""

from __future__ import annotations

import torch

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.inner import GradientDescent, InnerSolver
from imaml_lightning.objective import InnerObjective
from imaml_lightning.proximal import ProximalTerm


class FirstOrder(Adaptation):
    """φ found by the inner solver, with dφ/dθ = I: the meta-gradient is ∂L_Q/∂φ.

    It is what Implicit gives for λ → ∞, or for a linear solver that stops at u = v/λ; no Hessian products, and no
    gradient to λ. Parameters that are not adapted get their direct gradient only.

    Args:
        inner_solver: finds φ.
        proximal: the regulariser with its strength λ.

    Source: Finn, Abbeel, Levine (2017), section 5.2, here on the proximal inner problem.
    """

    def __init__(self, inner_solver: InnerSolver = GradientDescent(), proximal: ProximalTerm | None = None) -> None:
        super().__init__(inner_solver, proximal or ProximalTerm())

    def forward(self, objective: InnerObjective) -> Adapted:
        with torch.no_grad():
            solution = self.inner_solver.minimise(objective, objective.start())
        at = objective.linearise(solution.value, second_order=False)
        inner = solution.certified(at.gradient.detach().norm(dim=1))
        theta = objective.theta
        return Adapted(inner.value + (theta - theta.detach()), inner, stationarity=at.stationarity())
