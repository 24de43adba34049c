"""The first convolution of a folded network, computed and pooled by strips."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from imaml_lightning.models.conv4 import fused
from imaml_lightning.models.conv4.fused import ReLU, max_pool_relu
from imaml_lightning.models.conv4.layer import Gradients, Layer, channels_first, channels_last, empty_activation

_aten = torch.ops.aten

#: Bytes of the first convolution's output at a time, for each core: few enough to stay in its cache, enough to be worth a call.
IN_CACHE = 2**21


class Patches:
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

    def convolution(self, _: None, kernels: Tensor, bias: Tensor) -> FirstConvolution:
        """The layer with these parameters."""
        return FirstConvolution(self, kernels, bias)

    def strips(self, images: Tensor) -> Tensor:
        """Images the size of y, by strips ``[strip, channel, height, width]``."""
        return channels_first(channels_last(images).reshape(-1, *self.strip, images.shape[1]))

    def parts(self, channels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some strips at a time: which ones, their patches, and room for their convolution."""
        height, width = (length * self.pooling for length in self.strip)
        strips = self.rows.shape[1] // (height * width)
        size = strips
        if fused.on_cpu(self.rows):
            fit = IN_CACHE // (height * width * channels * self.rows.element_size())
            size = min(strips, max(1, fit) * torch.get_num_threads())
        room = channels_first(self.rows.new_empty(size, height, width, channels))
        for start, rows in zip(range(0, strips, size), self.rows.split(size * height * width, dim=1), strict=True):
            part = slice(start, min(start + size, strips))
            yield part, rows, room[: part.stop - start]


class FirstConvolution(Layer):
    """Convolution of images with kernels ``[task, filter, channel, 3, 3]``, pooling unless strided, ReLU."""

    def __init__(self, patches: Patches, kernels: Tensor, bias: Tensor) -> None:
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

    def vjp(self, g: Tensor, keep: bool) -> Gradients:
        g = self.patches.strips(g)
        total = g.new_zeros(self.tasks, self.patches.rows.shape[2], self.channels // self.tasks)
        for part, rows, room in self.patches.parts(self.channels):
            g_convolved, _ = self.activation.vjp(g, room, part)
            total.baddbmm_(rows.mT, self._by_task(g_convolved))
        return None, total[:, :-1].mT.unflatten(2, (-1, 3, 3)), total[:, -1]

    def vjp_derivative(self, dg: Tensor) -> Gradients:
        return self.vjp(dg, keep=False)  # which is linear in g, and nothing else in it changes

    def _convolved(self, kernels: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
        weight = torch.cat([kernels.flatten(2), bias.unsqueeze(2)], 2).mT
        for part, rows, room in self.patches.parts(self.channels):
            torch.bmm(rows, weight, out=self._by_task(room))
            yield part, room

    def _by_task(self, convolved: Tensor) -> Tensor:
        """``[strip, task x filter, height, width]`` as ``[task, pixel, filter]``."""
        return channels_last(convolved).reshape(-1, self.tasks, self.channels // self.tasks).transpose(0, 1)

    def _new_y(self) -> Tensor:
        examples, *size = self.patches.shape
        return empty_activation(self.patches.rows, examples, self.channels, *size)
