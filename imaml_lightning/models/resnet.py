"""Residual networks of 4, 8 or 12 layers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from imaml_lightning.errors import check_at_least
from imaml_lightning.models.parts import BodyAndHead, Norm, check_images, convolution, normalisation


class ResNet(BodyAndHead):
    """Four residual blocks of depth/4 convolutions, each halving the image, the mean over places, and a linear head.

    Args:
        way: outputs, one for each class of a task.
        channels: of an input image.
        size: height and width of an input image, in pixels.
        depth: 4, 8 or 12 layers of 3 x 3 convolutions; shortcuts and head are not counted.
        filters: of the first block; they double from block to block.
        norm: ``batch`` (statistics of the batch at hand: the *transductive* protocol), ``group`` or ``none``.
        zero_head: start the head at zero, so that the start is symmetric in the classes.

    Source: depth 12 as in Oreshkin et al. (2018) and Lee et al. (2019); Grefenstette et al. (2019) report 4, 8 and 12.
    """

    def __init__(
        self,
        way: int = 5,
        channels: int = 1,
        size: int = 28,
        depth: Literal[4, 8, 12] = 12,
        filters: int = 64,
        norm: Norm = "batch",
        zero_head: bool = True,
    ) -> None:
        check_at_least(1, "network", filters=filters)
        check_images("ResNet", way, channels, size, 4)
        widths = [channels, *(filters * 2**block for block in range(4))]
        blocks = [_Block(widths[i], widths[i + 1], depth // 4, norm) for i in range(4)]
        super().__init__(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1)), way, channels, size, zero_head)


class _Block(nn.Module):
    """Convolutions and a 1 x 1 shortcut, added; then ReLU and 2 x 2 max pooling."""

    def __init__(self, before: int, after: int, layers: int, norm: Norm) -> None:
        super().__init__()
        main: list[nn.Module] = []
        for layer in range(layers):
            main += [convolution(after if layer else before, after), normalisation(norm, after), nn.ReLU()]
        self.main = nn.Sequential(*main[:-1])
        self.shortcut = nn.Sequential(convolution(before, after, 1), normalisation(norm, after))
        self.end = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.main(x) + self.shortcut(x))
