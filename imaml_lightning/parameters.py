"""A network as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imaml_lightning.errors import UsageError


class FlatNetwork:
    """``network`` as a function of the flat vector ``[param]`` of its adapted parameters.

    Args:
        network: any module without buffers that its forward pass changes.
        adapt: name patterns (``head.*``); the parameters that match one are adapted to each task,
            in the network's own order. All others keep their meta-learned values.

    Raises:
        UsageError: if no parameter matches.
    """

    def __init__(self, network: nn.Module, adapt: Sequence[str] = ("*",)) -> None:
        named = dict(network.named_parameters())
        self.network = network
        self.names = [name for name in named if any(fnmatchcase(name, pattern) for pattern in adapt)]
        if not self.names:
            raise UsageError(
                f"no parameter of {type(network).__name__} matches adapt={list(adapt)}: use patterns of {list(named)}"
            )
        self.shapes = [named[name].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]

    def vector(self) -> Tensor:
        """θ ``[param]``: the adapted parameters as one vector; differentiable."""
        return torch.cat([self.network.get_parameter(name).flatten() for name in self.names])

    def shared(self) -> list[nn.Parameter]:
        """The parameters that are meta-learned but not adapted."""
        return [p for name, p in self.network.named_parameters() if name not in set(self.names)]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """``vector [param]`` cut into tensors by parameter name."""
        parts = vector.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, vector: Tensor, x: Tensor) -> Tensor:
        """The network's outputs ``[example, output]`` at ``vector [param]`` for ``x [example, *feature]``."""
        return functional_call(self.network, self.named(vector), (x,))
