"""What stands between two convolutions, each in one pass over memory: max pooling, ReLU, sums and mixtures of channels.

As separate operations with their ways back and second derivatives these read and write an activation some twenty times,
which takes a CPU as long as the convolutions. There numba compiles one loop for each pass; on other devices and in half
precision torch's operations do the same. Tensors are ``[example, channel, height, width]``, in channels-last memory on a
CPU; what a channel has one of is ``[channel]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_aten = torch.ops.aten

#: Bytes of an array below which handing it to another thread takes longer than its loop.
WORTH_A_THREAD = 2**20

#: In place of the number of a window's pixel, where ReLU lets nothing through.
_NONE = 4


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
        self.activated, self.values = activated, _array(activated)
        self.chosen_pixel = np.empty(self.values.shape, np.uint8)

    def forward(self, y: Tensor, part: slice = slice(None)) -> None:
        _in_threads(_pool, _array(y), self.values[part], self.chosen_pixel[part])

    def jvp(self, dy: Tensor, da: Tensor, part: slice = slice(None)) -> None:
        _in_threads(_pick, _array(dy), self.chosen_pixel[part], _array(da)[part])

    def vjp(self, g: Tensor, y: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        total = sum(_in_threads(_place, _array(g)[part], self.chosen_pixel[part], _array(y)))
        return y, torch.from_numpy(total).to(y.dtype)


def max_pool_relu(activated: Tensor) -> MaxPoolReLU:
    """The faster one for where ``activated`` lies."""
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
            _in_threads(_mix, *map(_array, (total, *tensors)), shared=coefficients.numpy())
            return total
        total, *rest = coefficients[:, :, None, None]
        for coefficient, tensor in zip(rest, tensors, strict=True):
            total = torch.addcmul(total, coefficient, tensor)
        return total


def channel_sums(u: Tensor, v: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u and Σ u (v − centre) over all but the channels ``[channel]``."""
    if _in_loops(u) and _in_loops(v):
        total, along = sum(_in_threads(_sum, _array(u), _array(v), shared=centre.numpy()))
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
    mean, along = sum(_in_threads(_sum, _array(x), _array(x), shared=centre.numpy())) * (x.shape[1] / x.numel())
    c = centre.double().numpy()
    variance = along - c * (mean - c) - (mean - c) ** 2
    mean, r = (torch.from_numpy(v).to(x.dtype) for v in (mean, (variance + eps) ** -0.5))
    return Mixture({x: scale * r}, shift - scale * r * mean).value(), mean, r


def on_cpu(x: Tensor) -> bool:
    """Whether x should lie in channels-last memory, where convolutions and pooling on a CPU are faster."""
    return x.device.type == "cpu"


def _in_loops(x: Tensor) -> bool:
    return on_cpu(x) and x.dtype in (torch.float32, torch.float64)


def _array(x: Tensor) -> np.ndarray:
    """The same memory as ``[example, height, width, channel]``."""
    return x.permute(0, 2, 3, 1).numpy()


def _in_threads(loop: Callable[..., Any], *arrays: np.ndarray, shared: np.ndarray | None = None) -> list[Any]:
    """A loop over the examples of arrays, shared out among torch's number of threads, or fewer if they are small."""
    run = loop if shared is None else partial(loop, shared)
    threads = min(torch.get_num_threads(), len(arrays[0]), arrays[0].nbytes // WORTH_A_THREAD)
    if threads <= 1:
        return [run(*arrays)]
    return list(_threads(threads).map(run, *(np.array_split(a, threads) for a in arrays)))


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "fused")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads stay with the parent


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call for each type, and kept on disk where that can be written to."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(nogil=True)(function)


# Arrays are [example, height, width, channel]. The innermost loops run over channels, each so plain that the compiler
# makes vector instructions of it; np.ndindex would keep it from that.


@_loop
def _window(y, e, i, j):  # type: ignore[no-untyped-def]
    """The four pixels of one maximum, in the order in which ``chosen`` numbers them."""
    above, below = y[e, 2 * i], y[e, 2 * i + 1]
    return above[2 * j], above[2 * j + 1], below[2 * j], below[2 * j + 1]


@_loop
def _pool(y, activated, chosen):  # type: ignore[no-untyped-def]
    examples, height, width, _ = activated.shape
    for e in range(examples):
        for i in range(height):
            for j in range(width):
                first, second, third, fourth = _window(y, e, i, j)
                a, k = activated[e, i, j], chosen[e, i, j]
                for c in range(len(a)):
                    best, at = first[c], np.uint8(0)
                    if second[c] > best or second[c] != second[c]:  # what is no number stays to be seen
                        best, at = second[c], np.uint8(1)
                    if third[c] > best or third[c] != third[c]:
                        best, at = third[c], np.uint8(2)
                    if fourth[c] > best or fourth[c] != fourth[c]:
                        best, at = fourth[c], np.uint8(3)
                    if best <= 0:
                        best, at = y.dtype.type(0), np.uint8(_NONE)
                    a[c], k[c] = best, at


@_loop
def _pick(dy, chosen, da):  # type: ignore[no-untyped-def]
    examples, height, width, _ = da.shape
    for e in range(examples):
        for i in range(height):
            for j in range(width):
                first, second, third, fourth = _window(dy, e, i, j)
                d, k = da[e, i, j], chosen[e, i, j]
                for c in range(len(d)):
                    p, q, r, s = first[c], second[c], third[c], fourth[c]
                    picked = p if k[c] == 0 else dy.dtype.type(0)
                    picked = q if k[c] == 1 else picked
                    picked = r if k[c] == 2 else picked
                    picked = s if k[c] == 3 else picked
                    d[c] = picked


@_loop
def _place(g, chosen, y):  # type: ignore[no-untyped-def]
    examples, height, width, channels = g.shape
    totals = np.zeros(channels)
    for e in range(examples):
        total = np.zeros(channels, g.dtype)
        for i in range(height):
            for j in range(width):
                h, k = g[e, i, j], chosen[e, i, j]
                for pixel in range(4):
                    placed = y[e, 2 * i + pixel // 2, 2 * j + pixel % 2]
                    for c in range(channels):
                        placed[c] = h[c] if k[c] == pixel else g.dtype.type(0)
                for c in range(channels):
                    total[c] += h[c] if k[c] != _NONE else g.dtype.type(0)
        totals += total
    y[:, 2 * height :] = 0
    y[:, :, 2 * width :] = 0
    return totals


@_loop
def _sum(centre, u, v):  # type: ignore[no-untyped-def]
    examples, height, width, channels = u.shape
    totals = np.zeros((2, channels))
    total, along = totals[0], totals[1]  # in float64: thousands of numbers are added up
    for e in range(examples):
        for i in range(height):
            for j in range(width):
                p, q = u[e, i, j], v[e, i, j]
                for c in range(channels):
                    total[c] += p[c]
                    along[c] += p[c] * (q[c] - centre[c])
    return totals


@_loop
def _mix(coefficients, total, *tensors):  # type: ignore[no-untyped-def]
    examples, height, width, channels = total.shape
    for e in range(examples):
        for i in range(height):
            for j in range(width):
                t = total[e, i, j]
                for c in range(channels):
                    t[c] = coefficients[0, c]
                for term in range(len(tensors)):
                    v, k = tensors[term][e, i, j], coefficients[term + 1]
                    for c in range(channels):
                        t[c] += k[c] * v[c]
