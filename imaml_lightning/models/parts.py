"""What the convolutional networks have in common."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError

Norm = Literal["batch", "group", "none"]


class BodyAndHead(nn.Module):
    """A body from images to features, and a linear head.

    Args:
        body: from images ``[example, channel, height, width]``; its output is flattened.
        way, channels, size: of the outputs and of the images.
        zero_head: start the head at zero, so that the start is symmetric in the classes.
    """

    def __init__(self, body: nn.Module, way: int, channels: int, size: int, zero_head: bool) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            features = body(torch.zeros(2, channels, size, size)).flatten(1).shape[1]
        self.head = nn.Linear(features, way)
        if zero_head:
            nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[example, way]`` of images ``[example, channel, height, width]``."""
        return self.head(self.body(x).flatten(1))


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (or divides them by ``stride``), He-normal with a bias of zero."""
    layer = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Normalisation without running statistics: of the ``batch`` at hand, of a ``group`` of channels, or ``none``."""
    if norm == "batch":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.GroupNorm(math.gcd(8, channels), channels) if norm == "group" else nn.Identity()


def check_images(owner: str, way: int, channels: int, size: int, halvings: int) -> None:
    """Refuse what no network can be built for, and images too small to be halved so often."""
    if min(way, channels) < 1 or size < 2**halvings:
        raise UsageError(
            f"{owner} needs way and channels of at least 1 and size of at least {2**halvings}, "
            f"got {way}, {channels} and {size}"
        )
