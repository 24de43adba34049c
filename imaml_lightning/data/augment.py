"""Augment: random flips, crops and colours of training images, a whole batch at once on its device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imaml_lightning.errors import UsageError

_NUMBERS = 6  # random numbers of an image: flip, crop down, crop across, brightness, contrast, saturation


@dataclass(frozen=True)
class Augment:
    """Random changes of each training image. The random numbers come from the episode's own generator.

    Args:
        flip: mirror left and right, half of the time.
        crop: pad by so many pixels (repeating the edge) and cut out the size anew, anywhere.
        colour: multiply brightness, contrast and saturation each by a factor from U[1 − colour, 1 + colour].
    """

    flip: bool = True
    crop: int = 0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0 or not 0 <= self.colour <= 1:
            raise UsageError(
                f"--data.augment.crop must be at least 0 and colour from 0 to 1, but are {self.crop} and {self.colour}."
            )

    def draw(self, rng: np.random.Generator, examples: int) -> Tensor:
        """The random numbers of a task's images, uniform in [0, 1), ``[example, number]``."""
        return torch.from_numpy(rng.random((examples, _NUMBERS), np.float32))

    def __call__(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Changed images, floats ``[task, example, channel, height, width]``, by ``numbers [task, example, number]``."""
        flip, down, across, *factors = numbers.flatten(0, 1).unbind(1)
        images = x.flatten(0, 1)
        if self.flip or self.crop:
            images = self._moved(images, flip, down, across)
        if self.colour:
            brightness, contrast, saturation = ((1 + self.colour * (2 * f - 1))[:, None, None, None] for f in factors)
            images = images * brightness
            images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
            images = torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)
        return images.view_as(x)

    def _moved(self, images: Tensor, flip: Tensor, down: Tensor, across: Tensor) -> Tensor:
        count, _, height, width = images.shape
        rows = torch.arange(height, device=images.device).expand(count, -1)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        if self.flip:
            columns = torch.where(flip[:, None] < 0.5, columns.flip(1), columns)
        if self.crop:
            images = functional.pad(images, [self.crop] * 4, mode="replicate")
            places = 2 * self.crop + 1
            rows = rows + (down * places).long()[:, None]
            columns = columns + (across * places).long()[:, None]
        each = torch.arange(count, device=images.device)[:, None, None]
        # Indices on both sides of the channel axis put it last.
        return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
