"""The plain convolutional network of MAML++."""

from __future__ import annotations

from torch import nn

from imaml_lightning.errors import check_at_least
from imaml_lightning.models.parts import BodyAndHead, Norm, check_images, convolution, normalisation


class VGG(BodyAndHead):
    """Stages of 3 x 3 convolutions, each with normalisation and leaky ReLU, and 2 x 2 max pooling; then a linear head.

    Args:
        way: outputs, one for each class of a task.
        channels: of an input image.
        size: height and width of an input image, in pixels.
        filters: of each convolution.
        stages: each of which halves the image.
        per_stage: convolutions of a stage.
        norm: ``batch`` (statistics of the batch at hand: the *transductive* protocol), ``group`` or ``none``.
        zero_head: start the head at zero, so that the start is symmetric in the classes.

    Source: Antoniou, Edwards, Storkey (2019), section 5; its released code names it VGG.
    """

    def __init__(
        self,
        way: int = 5,
        channels: int = 1,
        size: int = 28,
        filters: int = 64,
        stages: int = 4,
        per_stage: int = 1,
        norm: Norm = "batch",
        zero_head: bool = True,
    ) -> None:
        check_at_least(1, "network", filters=filters, stages=stages, per_stage=per_stage)
        check_images("VGG", way, channels, size, stages)
        layers: list[nn.Module] = []
        for stage in range(stages):
            for number in range(per_stage):
                before = channels if stage == number == 0 else filters
                layers += [convolution(before, filters), normalisation(norm, filters), nn.LeakyReLU(0.01)]
            layers.append(nn.MaxPool2d(2))
        super().__init__(nn.Sequential(*layers), way, channels, size, zero_head)
