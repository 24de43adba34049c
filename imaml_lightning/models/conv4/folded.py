"""Conv4 on many tasks at once: tasks folded into channels, and its derivatives written out.

``torch.func.vmap`` copies activations between every two layers, and autograd's second derivatives compute gradients
that nobody asked for. Here the tasks of a chunk are the groups of one grouped convolution, and J u, Jᵀ g and the change
of Jᵀ g along u are walks over the layers, each of which has its own three derivatives and what earlier walks have left
behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from imaml_lightning.models.conv4 import fused
from imaml_lightning.models.conv4.fused import Mixture, ReLU, batch_norm, channel_sums, max_pool_relu

_aten = torch.ops.aten

#: Bytes of the first convolution's output at a time, for each core: few enough to stay in its cache, enough to be worth a call.
IN_CACHE = 2**21

#: The gradient to a layer's input (None: to images), and those to its two parameters, or their changes.
_Gradients = tuple[Any, Tensor, Tensor]


class FoldedConv4:
    """The network on given images.

    Args:
        x: images ``[task, example, channel, height, width]``.
        strided: convolutions of stride 2 in place of max pooling.
        eps: of batch normalisation; None if there is none.
    """

    def __init__(self, x: Tensor, strided: bool, eps: float | None) -> None:
        self.patches, self.strided, self.eps = _Patches(x, strided), strided, eps

    def at(self, parameters: Sequence[Tensor]) -> FoldedPoint:
        """The network at one point.

        Args:
            parameters: of each layer in the network's order, ``[task, *shape]``: weight and bias of a convolution and,
                with batch normalisation, its scale and shift, for the four blocks; then weight and bias of the head.
        """
        kinds: list[Callable[..., _Layer]] = []
        for block in range(4):
            kinds.append(partial(_Convolution, strided=self.strided) if block else self.patches.convolution)
            if self.eps is not None:
                kinds.append(partial(_BatchNorm, eps=self.eps))
        return FoldedPoint([*kinds, _Linear], parameters)


class FoldedPoint:
    """The network on given images at one point.

    Attributes:
        outputs: logits ``[task, example, way]``.
    """

    def __init__(self, kinds: Sequence[Callable[..., _Layer]], parameters: Sequence[Tensor]) -> None:
        self.layers: list[_Layer] = []
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
        """The change of Jᵀ g along u, when g changes by ``dg``: of the last ``vjp`` kept, along the last ``jvp``.

        With g = ∂ℓ/∂z and dg = ∇²ℓ J u this is a product with the Hessian. Source: Pearlmutter (1994), "Fast exact
        multiplication by the Hessian".
        """
        return self._walk_back(dg, lambda layer, gy: layer.vjp_derivative(gy))

    def _walk_back(self, gy: Tensor, step: Callable[[_Layer, Tensor], _Gradients]) -> list[Tensor]:
        gradients: list[Tensor] = []
        for layer in reversed(self.layers):
            gy, *of_layer = step(layer, gy)
            gradients[:0] = of_layer
        return gradients


class _Layer(ABC):
    """A layer at one point, with its derivatives in its input x and its two parameters.

    Between layers there are ``[example, task x channel, height, width]``; parameters are ``[task, *shape]``.

    Attributes:
        y: its output.
    """

    y: Tensor

    @abstractmethod
    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        """The change of y with x (None: images, which do not change) and the parameters."""

    @abstractmethod
    def vjp(self, g: Tensor, keep: bool) -> _Gradients:
        """The gradients to x and the parameters from that to y."""

    @abstractmethod
    def vjp_derivative(self, dg: Tensor) -> _Gradients:
        """The changes of the gradients that the last ``vjp`` kept gave, along the last ``jvp``."""


class _Patches:
    """Images as a matrix ``[task, patch, value]``: a row for each 3 x 3 patch, which ends in a 1 for the bias.

    The first convolution, whose images stay from step to step, is a product with it. Its output is the largest of all
    activations, so on a CPU it never exists as a whole: it is computed and pooled by strips, a strip being those rows
    of pixels that become one row of y.

    Attributes:
        shape: of y, ``[example, height, width]``.
    """

    def __init__(self, x: Tensor, strided: bool) -> None:
        stride, self.strided = (2 if strided else 1), strided
        windows = pad(x, (1, 1, 1, 1)).unfold(3, 3, stride).unfold(4, 3, stride)
        self.pooling = 1 if strided else 2
        height, width = (length // self.pooling for length in windows.shape[3:5])
        self.shape = x.shape[1], height, width
        self.strip = (1 if fused.on_cpu(x) else height), width
        windows = windows[:, :, :, : height * self.pooling, : width * self.pooling]  # what pooling looks at
        self.rows = pad(windows.permute(0, 1, 3, 4, 2, 5, 6).reshape(len(x), -1, 9 * x.shape[2]), (0, 1), value=1)

    def convolution(self, _: None, kernels: Tensor, bias: Tensor) -> _FirstConvolution:
        """The layer with these parameters."""
        return _FirstConvolution(self, kernels, bias)

    def strips(self, images: Tensor) -> Tensor:
        """Images the size of y, by strips ``[strip, channel, height, width]``."""
        return _channels_first(_channels_last(images).reshape(-1, *self.strip, images.shape[1]))

    def parts(self, channels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some strips at a time: which ones, their patches, and room for their convolution."""
        height, width = (length * self.pooling for length in self.strip)
        strips = self.rows.shape[1] // (height * width)
        size = strips
        if fused.on_cpu(self.rows):
            fit = IN_CACHE // (height * width * channels * self.rows.element_size())
            size = min(strips, max(1, fit) * torch.get_num_threads())
        room = _channels_first(self.rows.new_empty(size, height, width, channels))
        for start, rows in zip(range(0, strips, size), self.rows.split(size * height * width, dim=1), strict=True):
            part = slice(start, min(start + size, strips))
            yield part, rows, room[: part.stop - start]


class _FirstConvolution(_Layer):
    """Convolution of images with kernels ``[task, filter, channel, 3, 3]``, pooling unless strided, ReLU."""

    def __init__(self, patches: _Patches, kernels: Tensor, bias: Tensor) -> None:
        self.patches, self.tasks, self.channels = patches, len(bias), bias.numel()
        self.y = self._new_y()
        self.activation = (ReLU if patches.strided else max_pool_relu)(patches.strips(self.y))
        for part, convolved in self._convolved(kernels, bias):
            self.activation.forward(convolved, part)

    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        dy = self._new_y()
        strips = self.patches.strips(dy)
        for part, dconvolved in self._convolved(dweight, dbias):
            self.activation.jvp(dconvolved, strips, part)
        return dy

    def vjp(self, g: Tensor, keep: bool) -> _Gradients:
        g = self.patches.strips(g)
        total = g.new_zeros(self.tasks, self.patches.rows.shape[2], self.channels // self.tasks)
        for part, rows, room in self.patches.parts(self.channels):
            g_convolved, _ = self.activation.vjp(g, room, part)
            total.baddbmm_(rows.mT, self._by_task(g_convolved))
        return None, total[:, :-1].mT.unflatten(2, (-1, 3, 3)), total[:, -1]

    def vjp_derivative(self, dg: Tensor) -> _Gradients:
        return self.vjp(dg, keep=False)  # which is linear in g, and nothing else in it changes

    def _convolved(self, kernels: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
        weight = torch.cat([kernels.flatten(2), bias.unsqueeze(2)], 2).mT
        for part, rows, room in self.patches.parts(self.channels):
            torch.bmm(rows, weight, out=self._by_task(room))
            yield part, room

    def _by_task(self, convolved: Tensor) -> Tensor:
        """``[strip, task x filter, height, width]`` as ``[task, pixel, filter]``."""
        return _channels_last(convolved).reshape(-1, self.tasks, self.channels // self.tasks).transpose(0, 1)

    def _new_y(self) -> Tensor:
        examples, *size = self.patches.shape
        return _room(self.patches.rows, examples, self.channels, *size)


class _Convolution(_Layer):
    """Convolution with kernels ``[task, filter, channel, 3, 3]``, pooling unless strided, ReLU."""

    def __init__(self, x: Tensor, kernels: Tensor, bias: Tensor, strided: bool) -> None:
        self.x, self.tasks, self.stride = x, len(kernels), 2 if strided else 1
        self.kernels = self._stacked(kernels)
        y = self._convolve(x, self.kernels, bias.flatten())
        self.shape = y.shape
        if strided:
            self.activation = ReLU(y)
        else:
            self.activation = max_pool_relu(_room(y, *y.shape[:2], y.shape[2] // 2, y.shape[3] // 2))
        self.activation.forward(y)
        self.y = self.activation.activated

    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        assert dx is not None
        self.dx, self.dkernels = dx, self._stacked(dweight)
        dy = self._convolve(self.x, self.dkernels, dbias.flatten())
        dy += self._convolve(dx, self.kernels, None)
        da = torch.empty_like(self.y)
        self.activation.jvp(dy, da)
        return da

    def vjp(self, g: Tensor, keep: bool) -> _Gradients:
        g, gbias = self._through_activation(g)
        if keep:
            self.g = g
        gx, gkernels = self._backward(g, self.x, self.kernels)
        return gx, gkernels, gbias

    def vjp_derivative(self, dg: Tensor) -> _Gradients:
        dg, gbias = self._through_activation(dg)
        gx, gkernels = self._backward(dg, self.x, self.kernels)
        gx_bent, gkernels_bent = self._backward(self.g, self.dx, self.dkernels)
        return gx.add_(gx_bent), gkernels.add_(gkernels_bent), gbias

    def _through_activation(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients to the convolution and to its bias."""
        g, total = self.activation.vjp(g, _room(g, *self.shape))
        return g, total.unflatten(0, (self.tasks, -1))

    def _convolve(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, kernels, bias, self.stride, padding=1, groups=self.tasks)

    def _backward(self, g: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients to x and to the kernels from that to the convolution."""
        stride = [self.stride] * 2
        gx, gkernels, _ = _aten.convolution_backward(
            g, x, kernels, None, stride, [1, 1], [1, 1], False, [0, 0], self.tasks, [True, True, False]
        )
        return gx, gkernels.unflatten(0, (self.tasks, -1))

    def _stacked(self, kernels: Tensor) -> Tensor:
        """``[task x filter, channel, 3, 3]``, in the memory format of x, or convolution copies it."""
        if not fused.on_cpu(kernels):
            return kernels.flatten(0, 1)
        return _channels_first(kernels.permute(0, 1, 3, 4, 2).flatten(0, 1))


class _BatchNorm(_Layer):
    """y = scale · x̂ + shift, scale and shift ``[task, channel]``, with x̂ = (x − mean x) r, r one over the deviation of x.

    A small change v of x changes x̂ by P v = r (v − mean v − x̂ mean(x̂ v)), which is symmetric, so that P is its transpose
    as well; and r by −r² mean(x̂ v).
    """

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> None:
        self.x, self.scale, self.tasks = x, scale.flatten(), len(scale)
        self.y, self.mean, self.r = batch_norm(x, self.scale, shift.flatten(), eps)
        self.count = x.numel() // x.shape[1]
        self.normal = Mixture({x: self.r}, -self.r * self.mean)

    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        assert dx is not None
        total, self.dx_along = self._sums(dx)
        self.dx, self.dx_mean, self.dscale = dx, total / self.count, dweight.flatten()
        self.dnormal = self._project(dx, total, self.dx_along)
        dy = self.dnormal * self.scale + self.normal * self.dscale + Mixture({}, dbias.flatten())
        return dy.value()

    def vjp(self, g: Tensor, keep: bool) -> _Gradients:
        total, along = self._sums(g)
        projected = self._project(g, total, along)
        if keep:
            self.g, self.g_along, self.projected = g, along, projected
        return self._gradients(projected * self.scale, along, total)

    def vjp_derivative(self, dg: Tensor) -> _Gradients:
        total, along = self._sums(dg)
        bent = self.r * (channel_sums(self.g, self.dx, self.dx_mean)[1] - self.g_along * self.dx_along / self.count)
        change = self.projected * self.dx_along + self.dnormal * self.g_along + self.normal * bent
        dprojected = self._project(dg, total, along) + change * (-self.r / self.count)
        return self._gradients(dprojected * self.scale + self.projected * self.dscale, along + bent, total)

    def _sums(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Σ v and Σ v x̂."""
        total, along = channel_sums(v, self.x, self.mean)
        return total, along * self.r

    def _project(self, v: Tensor, total: Tensor, along: Tensor) -> Mixture:
        """P v, from the sums of v."""
        r = self.r / self.count
        return Mixture({v: self.r}, -r * total) + self.normal * (-r * along)

    def _gradients(self, gx: Mixture, *gradients: Tensor) -> _Gradients:
        gscale, gshift = (v.unflatten(0, (self.tasks, -1)) for v in gradients)
        return gx.value(), gscale, gshift


class _Linear(_Layer):
    """The head: y ``[task, example, way]`` of all features of an image, with weight ``[task, way, feature]``."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.shape, self.weight = x.shape, weight
        self.features = self._features(x)
        self.y = torch.baddbmm(bias.unsqueeze(1), self.features, weight.mT)

    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        assert dx is not None
        self.dfeatures, self.dweight = self._features(dx), dweight
        return torch.baddbmm(dbias.unsqueeze(1), self.features, dweight.mT) + self.dfeatures @ self.weight.mT

    def vjp(self, g: Tensor, keep: bool) -> _Gradients:
        if keep:
            self.g = g
        return self._to_x(g @ self.weight), g.mT @ self.features, g.sum(1)

    def vjp_derivative(self, dg: Tensor) -> _Gradients:
        to_x = self._to_x(dg @ self.weight + self.g @ self.dweight)
        return to_x, dg.mT @ self.features + self.g.mT @ self.dfeatures, dg.sum(1)

    def _features(self, x: Tensor) -> Tensor:
        """``[example, task x channel, height, width]`` as ``[task, example, feature]``."""
        return x.reshape(len(x), len(self.weight), -1).transpose(0, 1)

    def _to_x(self, features: Tensor) -> Tensor:
        """The same back."""
        return _room(features, *self.shape).copy_(features.transpose(0, 1).reshape(self.shape))


def _room(like: Tensor, *shape: int) -> Tensor:
    """An activation without values yet."""
    fast = torch.channels_last if fused.on_cpu(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=fast)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
