"""What the convolutional networks have in common."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models.heads import AnyWay, UnitLength

Norm = Literal["batch", "running", "fixed", "group", "none"]


class BodyAndHead(nn.Module):
    """A body from images to features, and a linear head.

    Args:
        body: from images ``[example, channel, height, width]``; its output is flattened.
        way, channels, size: of the outputs and of the images.
        zero_head: start the head at zero, so that the start is symmetric in the classes.
        unit_length: divide the features of an image by their length, so that ‖z‖ = 1 for the head.
        any_way: a head for any number of classes (``AnyWay``) in place of one for ``way``.
    """

    def __init__(
        self,
        body: nn.Module,
        way: int,
        channels: int,
        size: int,
        zero_head: bool,
        unit_length: bool = False,
        any_way: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        training = body.training
        with torch.no_grad():
            features = body.eval()(torch.zeros(2, channels, size, size)).flatten(1).shape[1]
        body.train(training)
        self.embedding = nn.Sequential(nn.Flatten(), *([UnitLength()] if unit_length else []))
        self.any_way = any_way
        if any_way:
            self.head: nn.Linear = AnyWay(features)
            return
        self.head = nn.Linear(features, way)
        if zero_head:
            nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def chain(self) -> list[nn.Module]:
        """What ``forward`` applies, one after the other: here the network can be cut."""
        return [self.body, self.embedding, self.head]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[example, way]`` of images ``[example, channel, height, width]``."""
        return self.head(self.embedding(self.body(x)))


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (or divides them by ``stride``), He-normal with a bias of zero."""
    layer = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Normalisation by statistics of the ``batch`` at hand, with ``running`` averages for evaluation, by ``fixed`` ones, of a
    ``group``, or ``none``.
    """
    if norm == "fixed":
        return FixedStatistics(channels)
    if norm in ("batch", "running"):
        return nn.BatchNorm2d(channels, track_running_stats=norm == "running")
    return nn.GroupNorm(math.gcd(8, channels), channels) if norm == "group" else nn.Identity()


class FixedStatistics(nn.Module):
    """y = w (x − mean) / √(var + ε) + b for each channel, with a mean and a variance that nothing changes.

    They are those of a checkpoint (``callbacks.StartFrom``), and 0 and 1 without one. An image's outputs do not depend on
    other images, and there are no statistics that would be a mixture over inner steps, so this layer can be adapted.

    Args:
        channels: of the images ``[example, channel, height, width]``.
        eps: ε.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """As ``x``."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)


def check_images(owner: str, way: int, channels: int, size: int, halvings: int) -> None:
    """Refuse what no network can be built for, and images too small to be halved so often."""
    if min(way, channels) < 1 or size < 2**halvings:
        raise UsageError(
            f"{owner} needs way and channels of at least 1 and size of at least {2**halvings}, "
            f"got {way}, {channels} and {size}"
        )
