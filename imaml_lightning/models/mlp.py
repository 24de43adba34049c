"""A fully connected network for regression and tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from imaml_lightning.errors import UsageError


class MLP(nn.Module):
    """Linear layers with a smooth or piecewise linear activation between them.

    Args:
        features: inputs.
        outputs: outputs.
        hidden: width of each hidden layer. Two of 40 is the field's network for sinusoids.
        activation: between the layers.

    Source: Finn et al. (2017), section 5.1.
    """

    def __init__(
        self,
        features: int = 1,
        outputs: int = 1,
        hidden: Sequence[int] = (40, 40),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        widths = [features, *hidden, outputs]
        if min(widths) < 1:
            raise UsageError(f"every width of MLP must be at least 1, got {widths}")
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def chain(self) -> list[nn.Module]:
        """What ``forward`` applies."""
        return [self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[example, output]`` of ``x [example, feature]``."""
        return self.layers(x)
