"""Prototypes: class means for a head, as a prototypical network has them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.errors import UsageError, check_positive
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.proximal import NoProximalTerm


class Prototypes(Adaptation):
    """A prototypical network as a member of the family: row c of a linear head is the mean m_c of class c's support features.

        w_c = s m_c / ‖m_c‖,    z_c = w_cᵀ x = s ‖x‖ cos(x, m_c)

    No inner problem is solved. With one example of each class, and features of length 1, it is the limit λ → ∞ of ridge regression
    (``Newton`` and ``OneHotSquaredError`` of target s λ), so it says in one frame what solving an inner problem is worth. The scale s
    is meta-learned. A class without an example has a row of zeros.

    Args:
        scale: s > 0, at the start.

    Raises:
        UsageError: if scale is not a positive finite number; when adapting, if more is adapted than a linear head without a
            bias, or the targets are no classes.

    Cost: one product of matrices. Source: Snell, Swersky, Zemel (2017), "Prototypical networks for few-shot learning"; the angle in
    place of the distance from Gidaris and Komodakis (2018), "Dynamic few-shot visual learning without forgetting", section 3.
    """

    usual_proximal = NoProximalTerm
    constant = True

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        check_positive("adaptation", scale=scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, objective: InnerObjective) -> Adapted:
        network, support = objective.network, objective.support
        if not network.is_linear or len(network.names) > 1:
            raise UsageError(
                "Prototypes are rows of a linear head without a bias, and nothing else is adapted: set --model.adapt to "
                "[head.weight] and --model.network.any_way to true"
            )
        if support.y.is_floating_point():
            raise UsageError("Prototypes are means of classes, and the targets are values: use Implicit")
        way, real = objective.theta.shape[-1] // support.x.shape[-1], support.real()
        with full_precision(support.x.device):
            member = one_hot(torch.where(real, support.y, 0), way) * real.unsqueeze(2)
            rows = self.log_scale.exp() * normalize(member.mT.to(support.x) @ support.x, dim=2)
        return Adapted.unsolved(rows.flatten(1), 0, objective)

    def figures(self) -> dict[str, Tensor]:
        return super().figures() | {"scale": self.log_scale.detach().exp()}
