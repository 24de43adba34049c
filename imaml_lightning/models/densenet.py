"""A densely connected network of 8 layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imaml_lightning.errors import check_at_least
from imaml_lightning.models.parts import BodyAndHead, Norm, check_images, convolution, normalisation


class DenseNet(BodyAndHead):
    """A convolution, then blocks in which each layer sees all layers before it, the mean over places, a linear head.

    With the default ``blocks`` it is DenseNet-8: 1 + 2 + 2 + 2 convolutions of 3 x 3 and the head (the 1 x 1
    convolutions between blocks, which halve channels and image, are not counted).

    Args:
        way: outputs, one for each class of a task.
        channels: of an input image.
        size: height and width of an input image, in pixels.
        growth: channels that a layer adds.
        blocks: layers of each block.
        norm: ``batch`` (statistics of the batch at hand: the *transductive* protocol), ``group`` or ``none``.
        zero_head: start the head at zero, so that the start is symmetric in the classes.

    Source: Huang et al. (2017), without bottlenecks; Grefenstette et al. (2019) report a DenseNet-8.
    """

    def __init__(
        self,
        way: int = 5,
        channels: int = 1,
        size: int = 28,
        growth: int = 32,
        blocks: Sequence[int] = (2, 2, 2),
        norm: Norm = "batch",
        zero_head: bool = True,
    ) -> None:
        check_at_least(1, "network", growth=growth, blocks=min(blocks, default=0))
        check_images("DenseNet", way, channels, size, len(blocks))
        width = 2 * growth
        body: list[nn.Module] = [convolution(channels, width), nn.MaxPool2d(2)]
        for number, layers in enumerate(blocks):
            if number:
                body.append(_activated(width, width // 2, norm, 1, nn.AvgPool2d(2)))
                width //= 2
            for _ in range(layers):
                body.append(_Layer(_activated(width, growth, norm, 3)))
                width += growth
        body += [normalisation(norm, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(nn.Sequential(*body), way, channels, size, zero_head)


class _Layer(nn.Module):
    """A convolution whose outputs are appended to its inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], 1)


def _activated(before: int, after: int, norm: Norm, kernel: int, *end: nn.Module) -> nn.Module:
    return nn.Sequential(normalisation(norm, before), nn.ReLU(), convolution(before, after, kernel), *end)
