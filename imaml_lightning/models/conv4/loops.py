"""The loops of ``fused``, compiled by numba, and the threads that share their examples out."""

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

#: Bytes of an array below which handing it to another thread takes longer than its loop.
WORTH_A_THREAD = 2**20

#: In place of the number of a window's pixel, where ReLU lets nothing through.
_NONE = 4


def array(x: Tensor) -> np.ndarray:
    """The same memory as ``[example, height, width, channel]``."""
    return x.permute(0, 2, 3, 1).numpy()


def in_threads(loop: Callable[..., Any], *arrays: np.ndarray, shared: np.ndarray | None = None) -> list[Any]:
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
def pool(y, activated, chosen):  # type: ignore[no-untyped-def]
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
def pick(dy, chosen, da):  # type: ignore[no-untyped-def]
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
def place(g, chosen, y):  # type: ignore[no-untyped-def]
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
def sum_loop(centre, u, v):  # type: ignore[no-untyped-def]
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
def mix(coefficients, total, *tensors):  # type: ignore[no-untyped-def]
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
