"""A support loss that is itself learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError


class LearnedLoss(nn.Module):
    """ℓ(z, y) = base(z, y) + mean over examples of Σ_output net(z_output, y_output), with a small network ``net``.

    Class numbers are taken as one-hot vectors. The network is the same for all outputs, so the loss knows no class by
    its number; its last layer starts at zero, so that ℓ starts as ``base``. Give it as ``support_criterion``.

    Args:
        base: the loss it starts as, such as CrossEntropyLoss or MSELoss.
        hidden: width of the network's one hidden layer.

    Source: Bechtle et al. (2021), "Meta-learning via learned loss" (ML3), where there is no base.
    """

    def __init__(self, base: nn.Module, hidden: int = 20) -> None:
        super().__init__()
        if hidden < 1:
            raise UsageError(f"hidden of LearnedLoss must be at least 1, got {hidden}: set support_criterion.hidden")
        self.base = base
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Softplus(), last)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of one task, of outputs ``[example, output]`` and targets ``[example]`` or ``[example, output]``."""
        # A class number below 0 is padding and counts for nothing; values come without padding.
        real = torch.ones_like(z[:, 0]) if y.is_floating_point() else (y >= 0).to(z)
        targets = y if y.is_floating_point() else nn.functional.one_hot(y.clamp(min=0), z.shape[-1])
        each = self.net(torch.stack([z, targets.to(z)], -1)).sum((-2, -1))
        return self.base(z, y) + (each * real).sum() / real.sum()
