"""Conv4 on many tasks at once: tasks folded into channels, and its derivatives written out.

``torch.func.vmap`` copies activations between every two layers, and autograd's second derivatives compute gradients
that nobody asked for. Here the tasks of a chunk are the groups of one grouped convolution, and J u, Jᵀ g and the derivative
of Jᵀ g along u are passes over the layers, each of which has these three derivatives and keeps what later passes need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from imaml_lightning.models.conv4.first_convolution import Patches
from imaml_lightning.models.conv4.layer import Gradients, Layer
from imaml_lightning.models.conv4.layers import BatchNorm, Convolution, Linear


class FoldedConv4:
    """The network on given images.

    Args:
        x: images ``[task, example, channel, height, width]``.
        strided: convolutions of stride 2 in place of max pooling.
        eps: of batch normalisation; None if there is none.
    """

    def __init__(self, x: Tensor, strided: bool, eps: float | None) -> None:
        self.patches, self.strided, self.eps = Patches(x, strided), strided, eps

    def at(self, parameters: Sequence[Tensor]) -> FoldedPoint:
        """The network at one point.

        Args:
            parameters: of each layer in the network's order, ``[task, *shape]``: weight and bias of a convolution and,
                with batch normalisation, its scale and shift, for the four blocks; then weight and bias of the head.
        """
        kinds: list[Callable[..., Layer]] = []
        for block in range(4):
            kinds.append(partial(Convolution, strided=self.strided) if block else self.patches.convolution)
            if self.eps is not None:
                kinds.append(partial(BatchNorm, eps=self.eps))
        return FoldedPoint([*kinds, Linear], parameters)


class FoldedPoint:
    """The network on given images at one point.

    Attributes:
        outputs: logits ``[task, example, way]``.
    """

    def __init__(self, kinds: Sequence[Callable[..., Layer]], parameters: Sequence[Tensor]) -> None:
        self.layers: list[Layer] = []
        x: Tensor | None = None
        for kind, weight, bias in zip(kinds, parameters[::2], parameters[1::2], strict=True):
            self.layers.append(kind(x, weight, bias))
            x = self.layers[-1].y
        self.outputs = self.layers[-1].y

    def jvp(self, u: Sequence[Tensor]) -> Tensor:
        """J u ``[task, example, way]`` for a direction ``u`` shaped as the parameters."""
        dy: Any = None
        for layer, dweight, dbias in zip(self.layers, u[::2], u[1::2], strict=True):
            dy = layer.jvp(dy, dweight, dbias)
        return dy

    def vjp(self, g: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters, for ``g [task, example, way]``; ``keep`` it for ``vjp_derivative``."""
        return self._walk_back(g, lambda layer, gy: layer.vjp(gy, keep))

    def vjp_derivative(self, dg: Tensor) -> list[Tensor]:
        """The derivative of the last kept ``vjp`` Jᵀ g, along the direction u of the last ``jvp`` and along ``dg`` in g.

        With g = ∂ℓ/∂z and dg = ∇²ℓ J u this is a product with the Hessian. Source: Pearlmutter (1994), "Fast exact
        multiplication by the Hessian".
        """
        return self._walk_back(dg, lambda layer, gy: layer.vjp_derivative(gy))

    def _walk_back(self, gy: Tensor, step: Callable[[Layer, Tensor], Gradients]) -> list[Tensor]:
        gradients: list[Tensor] = []
        for layer in reversed(self.layers):
            gy, *of_layer = step(layer, gy)
            gradients[:0] = of_layer
        return gradients
