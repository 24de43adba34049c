"""Conv4 on many tasks at once: tasks folded into channels, and its derivatives written out.

``torch.func.vmap`` copies activations between every two layers, and autograd's second derivatives compute gradients
that nobody asked for. Here the tasks of a chunk are the groups of one grouped convolution from end to end, and J u, Jᵀ g
and the change of Jᵀ g along u are passes of their own over what earlier passes have left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

_aten = torch.ops.aten

#: A gradient where it was asked for, else None; who asks knows.
_IfAsked = Any


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
        *body, self.dweight, dbias = u
        dy: Tensor | None = None
        for block, du in zip(self.blocks, self._by_block(body), strict=True):
            dy = block.tangent(dy, *_stacked(du, block.x))
        assert dy is not None
        self.dfeatures = dy.reshape(dy.shape[0], len(dbias), -1).transpose(0, 1)
        return torch.baddbmm(dbias.unsqueeze(1), self.features, self.dweight.mT) + self.dfeatures @ self.weight.mT

    def cotangent(self, g: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters, for ``g [task, example, way]``; ``keep`` it for ``bend``."""
        head = [g.mT @ self.features, g.sum(1)]
        if keep:
            self.g = g
        return self._walk_back(g @ self.weight, head, lambda block, gy, last: block.cotangent(gy, last, keep))

    def bend(self, dg: Tensor) -> list[Tensor]:
        """The change of Jᵀ g along u, when g changes by ``dg``: of the last ``cotangent`` kept, along the last ``tangent``.

        With g = ∂ℓ/∂z and dg = ∇²ℓ J u this is a product with the Hessian. Source: Pearlmutter (1994), "Fast exact
        multiplication by the Hessian".
        """
        head = [dg.mT @ self.features + self.g.mT @ self.dfeatures, dg.sum(1)]
        return self._walk_back(dg @ self.weight + self.g @ self.dweight, head, _Block.bend)

    def _walk_back(self, gfeatures: Tensor, gradients: list[Tensor], step: _Step) -> list[Tensor]:
        gy = gfeatures.transpose(0, 1).reshape(self.shape)
        for block in reversed(self.blocks):
            gy, parameters = step(block, gy, block is not self.blocks[0])
            gradients = [p.unflatten(0, (len(gfeatures), -1)) for p in parameters] + gradients
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
        self.x, self.weight = x, weight
        self.convolved = self._convolution(x, weight, bias)
        pooled = self.convolved
        if not strided:
            pooled, self.chosen = max_pool2d(self.convolved, 2, return_indices=True)
        self.activated = self.y = pooled.relu()
        if eps is not None:
            self.scale = affine[0]
            self.y, self.mean, self.rstd = self._norm(*affine)

    def tangent(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor, *daffine: Tensor) -> Tensor:
        """The change of y with the input (None: an image, which does not change) and the parameters."""
        self.dx, self.dweight = dx, dweight
        dy = self._convolution(self.x, dweight, dbias)
        if dx is not None:
            dy += self._convolution(dx, self.weight, None)
        active = (self.activated > 0).to(dy.dtype)
        # The mean over a square that has one pixel left is a quarter of this pixel.
        dy = dy * active if self.strided else avg_pool2d(dy * self._unpooled(4 * active), 2)
        if self.eps is None:
            return dy
        # With x̂ the normalised input: the Jacobian ∂x̂/∂input is symmetric, so its transpose gives the change of x̂.
        self.dnormal, self.along, _ = self._norm_backward(dy, None)
        self.dscale = daffine[0]
        return _each(self.scale) * self.dnormal + self._norm(*daffine)[0]

    def cotangent(self, g: Tensor, to_input: bool, keep: bool) -> tuple[_IfAsked, list[Tensor]]:
        """Gradients to the input, if asked for, and to the parameters."""
        affine: list[Tensor] = []
        if self.eps is not None:
            if keep:
                self.g_y = g
            g, *affine = self._norm_backward(g, self.scale)
        g = self._through_activation(g)
        if keep:
            self.g_convolved = g
        gx, *convolution = self._convolution_backward(g, self.x, self.weight, [to_input, True, True])
        return gx, convolution + affine

    def bend(self, dg: Tensor, to_input: bool) -> tuple[_IfAsked, list[Tensor]]:
        """The changes of what ``cotangent`` gave."""
        affine: list[Tensor] = []
        if self.eps is not None:
            dg, *affine = self._norm_bend(dg)
        dg = self._through_activation(dg)
        gx, gweight, gbias = self._convolution_backward(dg, self.x, self.weight, [to_input, True, True])
        if to_input:
            assert self.dx is not None
            more = self._convolution_backward(self.g_convolved, self.dx, self.dweight, [True, True, False])
            gx, gweight = gx + more[0], gweight + more[1]
        return gx, [gweight, gbias, *affine]

    def _norm_bend(self, dg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The changes of the gradients that normalisation gives, to its input, scale and shift.

        Its input gets scale · b, b = r (g − mean g − x̂ mean g x̂), r one over the deviation; r changes by −r² mean(x̂ · d input).
        """
        count = dg.numel() // dg.shape[1]
        b, along_g, _ = self._norm_backward(self.g_y, None)
        db, dscale, dshift = self._norm_backward(dg, None)
        bent = _channel_sum(self.g_y * self.dnormal)
        normal = self._norm(None, None)[0]
        db = db - _each(self.rstd) / count * (
            _each(self.along) * b + _each(along_g) * self.dnormal + _each(bent) * normal
        )
        return _each(self.scale) * db + _each(self.dscale) * b, dscale + bent, dshift

    @property
    def stride(self) -> int:
        return 2 if self.strided else 1

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight, bias, self.stride, padding=1, groups=self.tasks)

    def _convolution_backward(
        self, g: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[_IfAsked, Tensor, _IfAsked]:
        return _aten.convolution_backward(
            g, x, weight, [weight.shape[0]], [self.stride] * 2, [1, 1], [1, 1], False, [0, 0], self.tasks, mask
        )

    def _through_activation(self, g: Tensor) -> Tensor:
        g = _aten.threshold_backward(g, self.activated, 0)
        return g if self.strided else self._unpooled(g)

    def _unpooled(self, g: Tensor) -> Tensor:
        """Each value of ``g`` at the pixel that max pooling chose, 0 elsewhere."""
        return _aten.max_pool2d_with_indices_backward(
            g, self.convolved, [2, 2], [2, 2], [0, 0], [1, 1], False, self.chosen
        )

    def _norm(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return _aten.native_batch_norm(self.activated, scale, shift, None, None, True, 0.0, self.eps)

    def _norm_backward(self, g: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to the input, to the scale (Σ g x̂) and to the shift (Σ g)."""
        return _aten.native_batch_norm_backward(
            g, self.activated, scale, None, None, self.mean, self.rstd, True, self.eps, [True, True, True]
        )


#: How a gradient goes back through a block: also to its input?
_Step = Callable[[_Block, Tensor, bool], tuple[_IfAsked, list[Tensor]]]


def _each(channels: Tensor) -> Tensor:
    """One number a channel, to be broadcast over examples, height and width."""
    return channels[:, None, None]


def _channel_sum(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0)
