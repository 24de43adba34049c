"""A squared error for classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from imaml_lightning.episode import IGNORED, Examples
from imaml_lightning.errors import check_positive


class OneHotSquaredError(nn.Module):
    """ℓ(z, y) = Σ over examples ½ ‖z − t e_y‖², e_y the one-hot vector of class y, t the size of the targets.

    As ``support_criterion`` with a linear head the inner problem is ridge regression, which ``Newton`` solves in one step.
    The solution is proportional to t, so t is the inverse temperature of the query set's softmax: meta-learned by default.
    A sum and no mean, so that λ means the same for any number of examples, and more of them outweigh it.

    Args:
        target: t > 0, at the start.
        learn: meta-learn t (its logarithm).

    Raises:
        UsageError: if target is not a positive finite number.

    Source: Bertinetto et al. (2019), "Meta-learning with differentiable closed-form solvers" (R2-D2), section 3.
    """

    def __init__(self, target: float = 10.0, learn: bool = True) -> None:
        super().__init__()
        check_positive("support_criterion", target=target)
        self.log_target = nn.Parameter(torch.tensor(math.log(target)), requires_grad=learn)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of one task, of outputs ``[example, class]`` and class numbers ``[example]``."""
        real = y != IGNORED
        goal = self.log_target.exp() * one_hot(torch.where(real, y, 0), z.shape[-1]).to(z.dtype)
        return 0.5 * ((z - goal).square().sum(-1) * real).sum()

    def output_curvature(self, z: Tensor, examples: Examples) -> tuple[Tensor, bool]:
        """∂²ℓ/∂z² as ``LinearisedHead.inverse`` wants it: 1, the same for all outputs."""
        return examples.real().unsqueeze(2).to(z.dtype), False
