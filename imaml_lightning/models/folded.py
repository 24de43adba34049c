"""Conv4 on many tasks at once: tasks folded into channels, and its derivatives written out.

``torch.func.vmap`` copies activations between every two layers, and autograd's second derivatives compute gradients
that nobody asked for. Here the tasks of a chunk are the groups of one grouped convolution, and J u, Jᵀ g and the change
of Jᵀ g along u are passes of their own over what earlier passes have left behind. The first convolution, of one or three
channels that stay the same from step to step, is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

_aten = torch.ops.aten

#: A gradient where there is one: none to images.
_IfAny = Any


class FoldedConv4:
    """The network on given images.

    Args:
        x: images ``[task, example, channel, height, width]``.
        strided: convolutions of stride 2 in place of max pooling.
        eps: of batch normalisation; None if there is none.
    """

    def __init__(self, x: Tensor, strided: bool, eps: float | None) -> None:
        self.patches, self.strided, self.eps = _Patches(x, 2 if strided else 1), strided, eps

    def at(self, parameters: Sequence[Tensor]) -> FoldedPoint:
        """The network at one point.

        Args:
            parameters: of each layer in the network's order, ``[task, *shape]``: weight, bias and, with batch
                normalisation, its scale and shift for the four blocks; then weight and bias of the head.
        """
        return FoldedPoint(self.patches, self.strided, self.eps, parameters)


class FoldedPoint:
    """The network on given images at one point.

    Attributes:
        outputs: logits ``[task, example, way]``.
    """

    def __init__(self, patches: _Patches, strided: bool, eps: float | None, parameters: Sequence[Tensor]) -> None:
        self.per_block = 2 if eps is None else 4
        *body, self.weight, bias = parameters
        x: _Input = patches
        self.blocks: list[_Block] = []
        for block in self._by_block(body):
            self.blocks.append(_Block(x, strided, eps, *block))
            y = self.blocks[-1].y
            x = _Activations(y, len(bias), patches.stride)
        self.shape = y.shape
        self.features = y.reshape(len(y), len(bias), -1).transpose(0, 1)
        self.outputs = torch.baddbmm(bias.unsqueeze(1), self.features, self.weight.mT)

    def tangent(self, u: Sequence[Tensor]) -> Tensor:
        """J u ``[task, example, way]`` for a direction ``u`` shaped as the parameters."""
        *body, self.dweight, dbias = u
        dy: Tensor | None = None
        for block, du in zip(self.blocks, self._by_block(body), strict=True):
            dy = block.tangent(dy, *du)
        assert dy is not None
        self.dfeatures = dy.reshape(dy.shape[0], len(dbias), -1).transpose(0, 1)
        return torch.baddbmm(dbias.unsqueeze(1), self.features, self.dweight.mT) + self.dfeatures @ self.weight.mT

    def cotangent(self, g: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters, for ``g [task, example, way]``; ``keep`` it for ``bend``."""
        head = [g.mT @ self.features, g.sum(1)]
        if keep:
            self.g = g
        return self._walk_back(g @ self.weight, head, lambda block, gy: block.cotangent(gy, keep))

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
            gy, (kernels, *vectors) = step(block, gy)
            gradients = [kernels, *(v.unflatten(0, (len(gfeatures), -1)) for v in vectors), *gradients]
        return gradients

    def _by_block(self, parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        return [parameters[at : at + self.per_block] for at in range(0, len(parameters), self.per_block)]


class _Patches:
    """Images, each 3 x 3 patch of them the row of a matrix ``[task, patch, value]`` that ends in a 1 for the bias."""

    def __init__(self, x: Tensor, stride: int) -> None:
        self.stride, self.examples = stride, x.shape[1]
        windows = pad(x, (1, 1, 1, 1)).unfold(3, 3, stride).unfold(4, 3, stride)
        *_, self.height, self.width, _, _ = windows.shape  # [task, example, channel, height, width, 3, 3]
        rows = windows.permute(0, 1, 3, 4, 2, 5, 6).reshape(len(x), -1, 9 * x.shape[2])
        self.rows = pad(rows, (0, 1), value=1)

    def stacked(self, kernels: Tensor) -> Tensor:
        """Kernels ``[task, filter, channel, 3, 3]`` as the other methods want them."""
        return kernels.flatten(2)

    def convolve(self, kernels: Tensor, bias: Tensor) -> Tensor:
        """The convolution, ``[example, task x filter, height, width]``."""
        tasks, filters = bias.shape
        y = self.rows.new_empty(self.rows.shape[1], tasks, filters)
        torch.bmm(self.rows, torch.cat([kernels, bias.unsqueeze(2)], 2).mT, out=y.transpose(0, 1))
        images = y.view(self.examples, self.height, self.width, -1).permute(0, 3, 1, 2)
        return images if y.device.type == "cpu" else images.contiguous()

    def to_kernels(self, g: Tensor) -> Tensor:
        """The gradient to the kernels from that to the convolution."""
        rows = g.permute(0, 2, 3, 1).unflatten(3, (len(self.rows), -1)).flatten(0, 2).transpose(0, 1)
        return torch.bmm(rows.mT, self.rows)[:, :, :-1].unflatten(2, (-1, 3, 3))


class _Activations:
    """What a block gives to the next one, ``[example, task x channel, height, width]``."""

    def __init__(self, x: Tensor, tasks: int, stride: int) -> None:
        self.x, self.tasks, self.stride = x, tasks, stride

    def convolve(self, kernels: Tensor, bias: Tensor | None) -> Tensor:
        flat = None if bias is None else bias.flatten()
        return conv2d(self.x, kernels, flat, self.stride, padding=1, groups=self.tasks)

    def to_kernels(self, g: Tensor) -> Tensor:
        """The gradient to the kernels from that to the convolution."""
        shape = self.x.new_empty(()).expand(g.shape[1], self.x.shape[1] // self.tasks, 3, 3)
        return self._backward(g, shape, [False, True, False])[1].unflatten(0, (self.tasks, -1))

    def to_input(self, g: Tensor, kernels: Tensor) -> Tensor:
        """The gradient to the input from that to the convolution."""
        return self._backward(g, kernels, [True, False, False])[0]

    def _backward(self, g: Tensor, kernels: Tensor, mask: list[bool]) -> tuple[_IfAny, _IfAny, None]:
        stride = [self.stride] * 2
        return _aten.convolution_backward(
            g, self.x, kernels, None, stride, [1, 1], [1, 1], False, [0, 0], self.tasks, mask
        )

    def stacked(self, kernels: Tensor) -> Tensor:
        """``[task, filter, channel, 3, 3]`` as ``[task x filter, channel, 3, 3]``, in the memory format of x, or convolution copies it."""
        if self.x.device.type != "cpu":
            return kernels.flatten(0, 1)
        return kernels.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)


#: What a convolution is applied to.
_Input = _Patches | _Activations


class _Block:
    """Convolution, max pooling unless strided, ReLU, batch normalisation.

    Kernels are ``[task, filter, channel, 3, 3]``, the other parameters ``[task, filter]``; all else has the tasks one after
    the other in its channels.
    """

    def __init__(
        self, inputs: _Input, strided: bool, eps: float | None, kernels: Tensor, bias: Tensor, *affine: Tensor
    ) -> None:
        self.inputs, self.strided, self.eps = inputs, strided, eps
        self.kernels = inputs.stacked(kernels)
        self.convolved = inputs.convolve(self.kernels, bias)
        pooled = self.convolved
        if not strided:
            pooled, self.chosen = max_pool2d(self.convolved, 2, return_indices=True)
        self.activated = self.y = pooled.relu()
        if eps is not None:
            self.scale, shift = (v.flatten() for v in affine)
            self.y, self.mean, self.rstd = self._norm(self.scale, shift)

    def tangent(self, dx: Tensor | None, dkernels: Tensor, dbias: Tensor, *daffine: Tensor) -> Tensor:
        """The change of y with the input (None: an image, which does not change) and the parameters."""
        self.dkernels = self.inputs.stacked(dkernels)
        dy = self.inputs.convolve(self.dkernels, dbias)
        if isinstance(self.inputs, _Activations):
            assert dx is not None
            self.dinputs = _Activations(dx, self.inputs.tasks, self.inputs.stride)
            dy += self.dinputs.convolve(self.kernels, None)
        dy *= self._passes
        if not self.strided:
            dy = avg_pool2d(dy, 2)
        if self.eps is None:
            return dy
        # With x̂ the normalised input: the Jacobian ∂x̂/∂input is symmetric, so its transpose gives the change of x̂.
        self.dnormal, self.along, _ = self._norm_backward(dy, None)
        self.dscale, dshift = (v.flatten() for v in daffine)
        return _each(self.scale) * self.dnormal + self._norm(self.dscale, dshift)[0]

    def cotangent(self, g: Tensor, keep: bool) -> tuple[_IfAny, list[Tensor]]:
        """Gradients to the input and to the parameters."""
        affine: list[Tensor] = []
        if self.eps is not None:
            if keep:
                self.g_y = g
            g, *affine = self._norm_backward(g, self.scale)
        g, bias = self._through_activation(g)
        if keep:
            self.g_convolved = g
        return self._to_input(g), [self.inputs.to_kernels(g), bias, *affine]

    def bend(self, dg: Tensor) -> tuple[_IfAny, list[Tensor]]:
        """The changes of what ``cotangent`` gave."""
        affine: list[Tensor] = []
        if self.eps is not None:
            dg, *affine = self._norm_bend(dg)
        dg, bias = self._through_activation(dg)
        gx, kernels = self._to_input(dg), self.inputs.to_kernels(dg)
        if isinstance(self.inputs, _Activations):
            gx += self.inputs.to_input(self.g_convolved, self.dkernels)
            kernels += self.dinputs.to_kernels(self.g_convolved)
        return gx, [kernels, bias, *affine]

    def _to_input(self, g: Tensor) -> _IfAny:
        return self.inputs.to_input(g, self.kernels) if isinstance(self.inputs, _Activations) else None

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

    @cached_property
    def _passes(self) -> Tensor:
        """What of a change of the convolution reaches the activation, before the mean over squares that have one pixel left."""
        active = (self.activated > 0).to(self.activated.dtype)
        return active if self.strided else self._unpooled(4 * active)

    def _through_activation(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients to the convolution and to its bias."""
        g = _aten.threshold_backward(g, self.activated, 0)
        return g if self.strided else self._unpooled(g), _channel_sum(g)

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


#: How a gradient goes back through a block.
_Step = Callable[[_Block, Tensor], tuple[_IfAny, list[Tensor]]]


def _each(channels: Tensor) -> Tensor:
    """One number a channel, to be broadcast over examples, height and width."""
    return channels[:, None, None]


def _channel_sum(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0)
