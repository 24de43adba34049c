"""Conv4 on many tasks at once: tasks folded into channels, and its Jacobian products written out.

``torch.func.vmap`` copies activations between every two layers, and autograd's second derivatives compute gradients
that a Jacobian product has no use for. Here the tasks of a chunk are the groups of one grouped convolution from end to
end, and J u and Jᵀ g are passes of their own over what the forward pass has left behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

_aten = torch.ops.aten


class FoldedConv4:
    """The network at one point: parameters of each task, and images.

    Args:
        parameters: of each layer in the network's order, ``[task, *shape]``: weight, bias and, with batch
            normalisation, its scale and shift for the four blocks; then weight and bias of the head.
        x: images ``[task, example, channel, height, width]``.
        strided: convolutions of stride 2 in place of max pooling.
        eps: of batch normalisation; None if there is none.

    Attributes:
        outputs: logits ``[task, example, way]``, which autograd can differentiate too.
    """

    def __init__(self, parameters: Sequence[Tensor], x: Tensor, strided: bool, eps: float | None) -> None:
        tasks, examples = x.shape[:2]
        self.per_block = 2 if eps is None else 4
        *body, self.weight, bias = parameters
        y = x.transpose(0, 1).flatten(1, 2)
        if x.device.type == "cpu":  # there pooling is ten times faster with channels last, and convolution no slower
            y = y.contiguous(memory_format=torch.channels_last)
        self.blocks: list[_Block] = []
        for block in self._by_block(body):
            self.blocks.append(_Block(tasks, strided, eps, y, *_stacked(block, y)))
            y = self.blocks[-1].y
        self.shape = y.shape
        self.features = y.reshape(examples, tasks, -1).transpose(0, 1)
        self.outputs = torch.baddbmm(bias.unsqueeze(1), self.features, self.weight.mT)

    def tangent(self, u: Sequence[Tensor]) -> Tensor:
        """J u ``[task, example, way]`` for a direction ``u`` shaped as the parameters."""
        *body, dweight, dbias = u
        dy = None
        for block, du in zip(self.blocks, self._by_block(body), strict=True):
            dy = block.tangent(dy, *_stacked(du, block.x))
        dfeatures = dy.reshape(dy.shape[0], len(dbias), -1).transpose(0, 1)
        return torch.baddbmm(dbias.unsqueeze(1), self.features, dweight.mT) + dfeatures @ self.weight.mT

    def cotangent(self, g: Tensor) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters, for ``g [task, example, way]``."""
        gradients = [g.mT @ self.features, g.sum(1)]
        gy = (g @ self.weight).transpose(0, 1).reshape(self.shape)
        for number, block in reversed(list(enumerate(self.blocks))):
            gy, parameters = block.cotangent(gy, to_input=number > 0)
            gradients = [p.unflatten(0, (len(g), -1)) for p in parameters] + gradients
        return gradients

    def _by_block(self, parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        return [parameters[at : at + self.per_block] for at in range(0, len(parameters), self.per_block)]


def _stacked(parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Each ``[task, *shape]`` as ``[task x first, *rest]``; kernels in the memory format of ``x``, or convolution copies them."""
    weight, *vectors = parameters
    if x.device.type == "cpu":
        weight = weight.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)
    else:
        weight = weight.flatten(0, 1)
    return [weight, *(v.flatten(0, 1) for v in vectors)]


class _Block:
    """Convolution, max pooling unless strided, ReLU, batch normalisation; x ``[example, task x channel, height, width]``.

    Parameters and their directions and gradients are those of all tasks, one after the other along the first axis.
    """

    def __init__(
        self, tasks: int, strided: bool, eps: float | None, x: Tensor, weight: Tensor, bias: Tensor, *affine: Tensor
    ) -> None:
        self.tasks, self.strided, self.eps = tasks, strided, eps
        self.x, self.weight, self.affine = x, weight, affine
        self.convolved = self._convolution(x, weight, bias)
        pooled = self.convolved
        if not strided:
            pooled, self.chosen = max_pool2d(self.convolved, 2, return_indices=True)
        self.activated = self.y = pooled.relu()
        if eps is not None:
            self.y, self.mean, self.rstd = self._norm(*affine)

    def tangent(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor, *daffine: Tensor) -> Tensor:
        """The change of y with the input (None: an image, which does not change) and the parameters."""
        dy = self._convolution(self.x, dweight, dbias)
        if dx is not None:
            dy += self._convolution(dx, self.weight, None)
        active = (self.activated > 0).to(dy.dtype)
        # The mean over a square that has one pixel left is a quarter of this pixel.
        dy = dy * active if self.strided else avg_pool2d(dy * self._unpooled(4 * active), 2)
        if self.eps is None:
            return dy
        # The Jacobian of normalisation in its input is symmetric (a projection, scaled), so its transpose serves.
        return self._norm_backward(dy, [True, False, False])[0] + self._norm(*daffine)[0]

    def cotangent(self, g: Tensor, to_input: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients to the input, if asked for, and to the parameters."""
        affine: list[Tensor] = []
        if self.eps is not None:
            g, *affine = self._norm_backward(g, [True, True, True])
        g = _aten.threshold_backward(g, self.activated, 0)
        if not self.strided:
            g = self._unpooled(g)
        gx, *convolution = _aten.convolution_backward(
            g, self.x, self.weight, [self.weight.shape[0]], [self.stride] * 2, [1, 1], [1, 1], False, [0, 0],
            self.tasks, [to_input, True, True],
        )  # fmt: skip
        return gx, convolution + affine

    @property
    def stride(self) -> int:
        return 2 if self.strided else 1

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight, bias, self.stride, padding=1, groups=self.tasks)

    def _unpooled(self, g: Tensor) -> Tensor:
        """Each value of ``g`` at the pixel that max pooling chose, 0 elsewhere."""
        return _aten.max_pool2d_with_indices_backward(
            g, self.convolved, [2, 2], [2, 2], [0, 0], [1, 1], False, self.chosen
        )

    def _norm(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _aten.native_batch_norm(self.activated, scale, shift, None, None, True, 0.0, self.eps)

    def _norm_backward(self, g: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        return _aten.native_batch_norm_backward(
            g, self.activated, self.affine[0], None, None, self.mean, self.rstd, True, self.eps, mask
        )
