"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models.folded import FoldedConv4


class Conv4(nn.Module):
    """Four blocks of 3 x 3 convolution, down-sampling, normalisation and ReLU, then a linear head.

    Args:
        way: outputs, one for each class of a task.
        channels: of an input image.
        size: height and width of an input image, in pixels.
        filters: of each convolution.
        downsample: ``max_pool`` (2 x 2, after the convolution) or ``stride`` (convolutions of stride 2, as in the
            paper's Omniglot code; several times cheaper).
        norm: ``batch`` (statistics of the batch at hand, no running averages: the *transductive* protocol when a
            query batch is normalised by itself), ``group`` (8 groups, or the most of 4, 2, 1 that divide
            ``filters``), or ``none``.
        zero_head: start the head at zero, so that the start is symmetric in the classes, whose order is drawn anew
            in every episode, and so that the inner problem begins well conditioned.

    Source: Vinyals et al. (2016), section 4.1; Finn et al. (2017), appendix A.1.
    """

    def __init__(
        self,
        way: int = 5,
        channels: int = 1,
        size: int = 28,
        filters: int = 64,
        downsample: Literal["max_pool", "stride"] = "max_pool",
        norm: Literal["batch", "group", "none"] = "batch",
        zero_head: bool = True,
    ) -> None:
        super().__init__()
        if min(way, channels, size, filters) < 1:
            given = f"{way}, {channels}, {size}, {filters}"
            raise UsageError(f"way, channels, size and filters of Conv4 must be at least 1, got {given}")
        if downsample == "max_pool" and size < 16:
            raise UsageError(
                f"size of Conv4 must be at least 16 for max_pool to halve it four times, got {size}: use stride"
            )
        strided = downsample == "stride"
        blocks = []
        for block in range(4):
            convolution = nn.Conv2d(channels if block == 0 else filters, filters, 3, 2 if strided else 1, 1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
            layers: list[tuple[str, nn.Module]] = [("conv", convolution)]
            if not strided:
                layers.append(("pool", nn.MaxPool2d(2)))
            layers.append(("relu", nn.ReLU()))
            if norm == "batch":
                layers.append(("norm", nn.BatchNorm2d(filters, track_running_stats=False)))
            elif norm == "group":
                layers.append(("norm", nn.GroupNorm(math.gcd(8, filters), filters)))
            blocks.append(nn.Sequential(OrderedDict(layers)))
        self.strided, self.norm = strided, norm
        self.body = nn.Sequential(*blocks)
        with torch.no_grad():
            features = self.body(torch.zeros(2, channels, size, size)).flatten(1).shape[1]
        self.head = nn.Linear(features, way)
        if zero_head:
            nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[example, way]`` of images ``[example, channel, height, width]``."""
        return self.head(self.body(x).flatten(1))

    @property
    def fold(self) -> Callable[[Sequence[Tensor], Tensor], FoldedConv4] | None:
        """The network on many tasks at once, of parameters ``[task, *shape]`` in the module's order and images
        ``[task, example, channel, height, width]``; None with group normalisation, for a subclass, whose layers may be
        others, and where forward hooks wait to be called.
        """
        if type(self) is not Conv4 or self.norm == "group" or any(m._forward_hooks for m in self.modules()):
            return None
        eps = self.body[0].norm.eps if self.norm == "batch" else None
        return lambda parameters, x: FoldedConv4(parameters, x, self.strided, eps)
