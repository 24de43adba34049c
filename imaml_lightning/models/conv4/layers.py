"""The layers of a folded network after its first convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from imaml_lightning.models.conv4 import fused
from imaml_lightning.models.conv4.fused import Mixture, ReLU, batch_norm, channel_sums, max_pool_relu
from imaml_lightning.models.conv4.layer import Gradients, Layer, channels_first, empty_activation

_aten = torch.ops.aten


class Convolution(Layer):
    """Convolution with kernels ``[task, filter, channel, 3, 3]``, pooling unless strided, ReLU."""

    def __init__(self, x: Tensor, kernels: Tensor, bias: Tensor, strided: bool) -> None:
        self.x, self.tasks, self.stride = x, len(kernels), 2 if strided else 1
        self.kernels = self._stacked(kernels)
        y = self._convolve(x, self.kernels, bias.flatten())
        self.shape = y.shape
        if strided:
            self.activation = ReLU(y)
        else:
            self.activation = max_pool_relu(empty_activation(y, *y.shape[:2], y.shape[2] // 2, y.shape[3] // 2))
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

    def vjp(self, g: Tensor, keep: bool) -> Gradients:
        g, gbias = self._through_activation(g)
        if keep:
            self.g = g
        gx, gkernels = self._backward(g, self.x, self.kernels)
        return gx, gkernels, gbias

    def vjp_derivative(self, dg: Tensor) -> Gradients:
        dg, gbias = self._through_activation(dg)
        gx, gkernels = self._backward(dg, self.x, self.kernels)
        gx_bent, gkernels_bent = self._backward(self.g, self.dx, self.dkernels)
        return gx.add_(gx_bent), gkernels.add_(gkernels_bent), gbias

    def _through_activation(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients to the convolution and to its bias."""
        g, total = self.activation.vjp(g, empty_activation(g, *self.shape))
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
        return channels_first(kernels.permute(0, 1, 3, 4, 2).flatten(0, 1))


class BatchNorm(Layer):
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

    def vjp(self, g: Tensor, keep: bool) -> Gradients:
        total, along = self._sums(g)
        projected = self._project(g, total, along)
        if keep:
            self.g, self.g_along, self.projected = g, along, projected
        return self._gradients(projected * self.scale, along, total)

    def vjp_derivative(self, dg: Tensor) -> Gradients:
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

    def _gradients(self, gx: Mixture, *gradients: Tensor) -> Gradients:
        gscale, gshift = (v.unflatten(0, (self.tasks, -1)) for v in gradients)
        return gx.value(), gscale, gshift


class Linear(Layer):
    """The head: y ``[task, example, way]`` of all features of an image, with weight ``[task, way, feature]``."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.shape, self.weight = x.shape, weight
        self.features = self._features(x)
        self.y = torch.baddbmm(bias.unsqueeze(1), self.features, weight.mT)

    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        assert dx is not None
        self.dfeatures, self.dweight = self._features(dx), dweight
        return torch.baddbmm(dbias.unsqueeze(1), self.features, dweight.mT) + self.dfeatures @ self.weight.mT

    def vjp(self, g: Tensor, keep: bool) -> Gradients:
        if keep:
            self.g = g
        return self._to_x(g @ self.weight), g.mT @ self.features, g.sum(1)

    def vjp_derivative(self, dg: Tensor) -> Gradients:
        to_x = self._to_x(dg @ self.weight + self.g @ self.dweight)
        return to_x, dg.mT @ self.features + self.g.mT @ self.dfeatures, dg.sum(1)

    def _features(self, x: Tensor) -> Tensor:
        """``[example, task x channel, height, width]`` as ``[task, example, feature]``."""
        return x.reshape(len(x), len(self.weight), -1).transpose(0, 1)

    def _to_x(self, features: Tensor) -> Tensor:
        """The same back."""
        return empty_activation(features, *self.shape).copy_(features.transpose(0, 1).reshape(self.shape))
