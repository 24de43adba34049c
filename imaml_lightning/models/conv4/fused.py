"""What stands between two convolutions, each in one pass over memory: max pooling, ReLU, sums and mixtures of channels.

As separate operations, with their backward passes and second derivatives, these read and write an activation some twenty times,
which takes a CPU as long as the convolutions. There numba compiles one loop for each pass; on other devices and in half
precision torch's operations do the same. Tensors are ``[example, channel, height, width]``, in channels-last memory on a
CPU; values for each channel are ``[channel]``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.models.conv4.loops import array, in_threads, mix, pick, place, pool, sum_loop

_aten = torch.ops.aten


class ReLU:
    """max(y, 0) and its derivatives, all or a part of the examples at a time.

    Args:
        activated: where its values go.
    """

    def __init__(self, activated: Tensor) -> None:
        self.activated = activated

    def forward(self, y: Tensor, part: slice = slice(None)) -> None:
        """The values."""
        torch.clamp(y, min=0, out=self.activated[part])

    def jvp(self, dy: Tensor, da: Tensor, part: slice = slice(None)) -> None:
        """Their change when y changes by ``dy``, into that part of ``da``."""
        da[part] = dy * (self.activated[part] > 0)

    def vjp(self, g: Tensor, y: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The gradient to y, and its sums ``[channel]``, from that part of ``g``, the gradient to the values.

        ``y`` is room for it, of the right shape.
        """
        g = _aten.threshold_backward(g[part], self.activated[part], 0)
        return g, g.sum((0, 2, 3))


class MaxPoolReLU(ReLU):
    """ReLU of 2 x 2 max pooling, which remembers the pixel that each value comes from."""

    def __init__(self, activated: Tensor) -> None:
        super().__init__(activated)
        self.chosen = torch.empty_like(activated, dtype=torch.int64)

    def forward(self, y: Tensor, part: slice = slice(None)) -> None:
        pooled, self.chosen[part] = _aten.max_pool2d_with_indices(y, [2, 2])
        super().forward(pooled, part)

    def jvp(self, dy: Tensor, da: Tensor, part: slice = slice(None)) -> None:
        picked = dy.flatten(2).gather(2, self.chosen[part].flatten(2))
        super().jvp(picked.view_as(da[part]), da, part)

    def vjp(self, g: Tensor, y: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        pooled, total = super().vjp(g, y, part)
        unpool = _aten.max_pool2d_with_indices_backward
        return unpool(pooled, y, [2, 2], [2, 2], [0, 0], [1, 1], False, self.chosen[part]), total


class _LoopedMaxPoolReLU(MaxPoolReLU):
    """The same in loops."""

    def __init__(self, activated: Tensor) -> None:
        self.activated, self.values = activated, array(activated)
        self.chosen_pixel = np.empty(self.values.shape, np.uint8)

    def forward(self, y: Tensor, part: slice = slice(None)) -> None:
        in_threads(pool, array(y), self.values[part], self.chosen_pixel[part])

    def jvp(self, dy: Tensor, da: Tensor, part: slice = slice(None)) -> None:
        in_threads(pick, array(dy), self.chosen_pixel[part], array(da)[part])

    def vjp(self, g: Tensor, y: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        total = sum(in_threads(place, array(g)[part], self.chosen_pixel[part], array(y)))
        return y, torch.from_numpy(total).to(y.dtype)


def max_pool_relu(activated: Tensor) -> MaxPoolReLU:
    """The faster of the two on the device of ``activated``."""
    return (_LoopedMaxPoolReLU if _in_loops(activated) else MaxPoolReLU)(activated)


class Mixture:
    """Σᵢ coefficientᵢ · tensorᵢ + constant, coefficients and constant ``[channel]``; added up only by ``value``."""

    def __init__(self, terms: dict[Tensor, Tensor], constant: Tensor) -> None:
        self.terms, self.constant = terms, constant

    def __add__(self, other: Mixture) -> Mixture:
        terms = dict(self.terms)
        for tensor, coefficient in other.terms.items():
            terms[tensor] = terms[tensor] + coefficient if tensor in terms else coefficient
        return Mixture(terms, self.constant + other.constant)

    def __mul__(self, factor: Tensor) -> Mixture:
        return Mixture({tensor: factor * c for tensor, c in self.terms.items()}, factor * self.constant)

    def value(self) -> Tensor:
        tensors, coefficients = list(self.terms), torch.stack([self.constant, *self.terms.values()])
        if all(_in_loops(v) for v in tensors):
            total = torch.empty_like(tensors[0])
            in_threads(mix, *map(array, (total, *tensors)), shared=coefficients.numpy())
            return total
        total, *rest = coefficients[:, :, None, None]
        for coefficient, tensor in zip(rest, tensors, strict=True):
            total = torch.addcmul(total, coefficient, tensor)
        return total


def channel_sums(u: Tensor, v: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u and Σ u (v − centre) over all but the channels ``[channel]``."""
    if _in_loops(u) and _in_loops(v):
        total, along = sum(in_threads(sum_loop, array(u), array(v), shared=centre.numpy()))
        return torch.from_numpy(total).to(centre), torch.from_numpy(along).to(centre)
    return u.sum((0, 2, 3), dtype=centre.dtype), (u * (v - centre[:, None, None])).sum((0, 2, 3))


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """scale (x − mean) r + shift, the mean, and r, one over the deviation, all but the first ``[channel]``.

    In loops sums are float64: in channels-last memory torch's own adds up thousands of numbers in the type of x, which
    leaves five digits of an activation, and of a gradient behind some maxima two.
    """
    if not _in_loops(x):
        return _aten.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)
    # About the mean of one example, near which nothing cancels: Σ x and Σ x (x − c), in one pass.
    centre = x[:1].mean((0, 2, 3))
    mean, along = sum(in_threads(sum_loop, array(x), array(x), shared=centre.numpy())) * (x.shape[1] / x.numel())
    c = centre.double().numpy()
    variance = along - c * (mean - c) - (mean - c) ** 2
    mean, r = (torch.from_numpy(v).to(x.dtype) for v in (mean, (variance + eps) ** -0.5))
    return Mixture({x: scale * r}, shift - scale * r * mean).value(), mean, r


def on_cpu(x: Tensor) -> bool:
    """Whether x should lie in channels-last memory, where convolutions and pooling on a CPU are faster."""
    return x.device.type == "cpu"


def _in_loops(x: Tensor) -> bool:
    return on_cpu(x) and x.dtype in (torch.float32, torch.float64)
