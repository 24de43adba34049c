"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models.conv4.folded import FoldedConv4
from imaml_lightning.models.parts import BodyAndHead, Norm, convolution, normalisation


class Conv4(BodyAndHead):
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
        norm: Norm = "batch",
        zero_head: bool = True,
    ) -> None:
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
            before = channels if block == 0 else filters
            layers: list[tuple[str, nn.Module]] = [("conv", convolution(before, filters, stride=2 if strided else 1))]
            if not strided:
                layers.append(("pool", nn.MaxPool2d(2)))
            layers.append(("relu", nn.ReLU()))
            if norm != "none":
                layers.append(("norm", normalisation(norm, filters)))
            blocks.append(nn.Sequential(OrderedDict(layers)))
        super().__init__(nn.Sequential(*blocks), way, channels, size, zero_head)
        self.strided, self.norm = strided, norm

    @property
    def fold(self) -> Callable[[Tensor], FoldedConv4] | None:
        """The network on many tasks at once, of images ``[task, example, channel, height, width]``; None with group
        normalisation, for a subclass, whose layers may be others, and where forward hooks wait to be called.
        """
        if type(self) is not Conv4 or self.norm == "group" or any(m._forward_hooks for m in self.modules()):
            return None
        eps = next((m.eps for m in self.modules() if isinstance(m, nn.BatchNorm2d)), None)
        return lambda x: FoldedConv4(x, self.strided, eps)
