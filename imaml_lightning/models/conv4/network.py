"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models.conv4.folded import FoldedConv4
from imaml_lightning.models.conv4.recognised import recognise
from imaml_lightning.models.parts import BodyAndHead, Norm, convolution, normalisation


class Conv4(BodyAndHead):
    """Four blocks of 3 x 3 convolution, down-sampling, normalisation and ReLU, then a linear head.

    Args:
        way: outputs, one for each class of a task.
        channels: of an input image.
        size: height and width of an input image, in pixels.
        filters: of each convolution; one number for all, or a list of one for each block.
        downsample: ``max_pool`` (2 x 2, after the convolution) or ``stride`` (convolutions of stride 2, as in the
            paper's Omniglot code; several times cheaper).
        norm: ``batch`` (statistics of the batch at hand, no running averages: the *transductive* protocol when a
            query batch is normalised by itself), ``running`` (ordinary batch normalisation with running averages for
            evaluation, hence *inductive*; for layers that are not adapted), ``fixed`` (statistics of the checkpoint that
            ``callbacks.StartFrom`` reads, never changed; inductive, and can be adapted), ``group`` (8 groups, or the most
            of 4, 2, 1 that divide ``filters``), or ``none``. One for all blocks, or a list of one for each.
        zero_head: start the head at zero, so that the start is symmetric in the classes, whose order is drawn anew
            in every episode, and so that the inner problem begins well conditioned.
        norm_first: normalise before the ReLU, as is usual outside few-shot learning, not after it.
        pools: of the four blocks, how many halve the image; with 3 an image of 28 pixels leaves 3 x 3 places.
        unit_length: features of length 1 for the head.
        any_way: a head for any number of classes (``AnyWay``); ``way`` then means nothing.

    Source: Vinyals et al. (2016), section 4.1; Finn et al. (2017), appendix A.1.
    """

    def __init__(
        self,
        way: int = 5,
        channels: int = 1,
        size: int = 28,
        filters: int | Sequence[int] = 64,
        downsample: Literal["max_pool", "stride"] = "max_pool",
        norm: Norm | Sequence[Norm] = "batch",
        zero_head: bool = True,
        norm_first: bool = False,
        pools: int = 4,
        unit_length: bool = False,
        any_way: bool = False,
    ) -> None:
        widths = [filters] * 4 if isinstance(filters, int) else list(filters)
        if min(way, channels, size, *widths) < 1:
            given = f"{way}, {channels}, {size}, {filters}"
            raise UsageError(f"way, channels, size and filters of Conv4 must be at least 1, got {given}")
        if not 0 <= pools <= 4:
            raise UsageError(f"pools of Conv4 must be from 0 to 4, got {pools}: it has four blocks")
        if downsample == "max_pool" and size < 2**pools:
            raise UsageError(
                f"size of Conv4 must be at least {2**pools} for max_pool to halve it {pools} times, got {size}: use stride"
            )
        norms = [norm] * 4 if isinstance(norm, str) else list(norm)
        if len(norms) != 4 or len(widths) != 4:
            raise UsageError(
                f"norm and filters of Conv4 must be one, or four for four blocks, got {norms} and {widths}"
            )
        strided = downsample == "stride"
        blocks = []
        for block in range(4):
            before, after = [channels, *widths][block], widths[block]
            halves = block < pools
            stride = 2 if strided and halves else 1
            layers: list[tuple[str, nn.Module]] = [("conv", convolution(before, after, stride=stride))]
            if not strided and halves:
                layers.append(("pool", nn.MaxPool2d(2)))
            activation: list[tuple[str, nn.Module]] = [("relu", nn.ReLU())]
            if norms[block] != "none":
                activation.insert(0 if norm_first else 1, ("norm", normalisation(norms[block], after)))
            layers += activation
            blocks.append(nn.Sequential(OrderedDict(layers)))
        super().__init__(nn.Sequential(*blocks), way, channels, size, zero_head, unit_length, any_way)

    @property
    def fold(self) -> Callable[[Tensor], FoldedConv4] | None:
        """The network on many tasks at once, of images ``[task, example, channel, height, width]``; None for a subclass, and
        for a network that was edited or is otherwise not exactly what is written out (group normalisation).
        """
        passes = recognise(self) if type(self) is Conv4 else None
        return passes and (lambda x: FoldedConv4(x, *passes))
