"""Augment: random changes of training images, a whole batch at once on its device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imaml_lightning.errors import UsageError

_NUMBERS = 6  # random numbers of an image: flip, crop down, crop across, brightness, contrast, saturation
_AFFINE = 6  # of an affine change: angle, height, width, shear, shift down, shift across
_NODES = 4  # a side of the square of places that an elastic change moves each by itself


@dataclass(frozen=True)
class Augment:
    """Random changes of each training image. The random numbers come from the episode's own generator.

    Args:
        flip: mirror left and right, half of the time.
        crop: pad by so many pixels (repeating the edge) and cut out the size anew, anywhere.
        colour: multiply brightness, contrast and saturation each by a factor from U[1 − colour, 1 + colour].
        rotation: turn about the middle, to the left, by an angle from U[−rotation, rotation], in degrees.
        scale: multiply height and width each by a factor from U[1 − scale, 1 + scale].
        shear: slant by a share of the height from U[−shear, shear].
        shift: move down and across by as many pixels as U[−shift, shift] gives.
        elastic: move each of 4 x 4 places down and across by as many pixels as U[−elastic, elastic] gives, what lies
            between them smoothly.

    Scale, shear, rotation and shift come in this order. What comes into view from outside has the median value of the
    image's border.
    """

    flip: bool = True
    crop: int = 0
    colour: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0 or not 0 <= self.colour <= 1:
            raise UsageError(
                f"--data.augment.crop must be at least 0 and colour from 0 to 1, but are {self.crop} and {self.colour}."
            )
        limits = {"rotation": 180.0, "scale": 0.9, "shear": 2.0, "shift": np.inf, "elastic": np.inf}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit or not np.isfinite(value):
                bound = f"from 0 to {limit:g}" if np.isfinite(limit) else "at least 0"
                raise UsageError(f"--data.augment.{name} must be {bound}, but is {value}.")

    @property
    def _affine(self) -> bool:
        return bool(self.rotation or self.scale or self.shear or self.shift)

    def draw(self, rng: np.random.Generator, examples: int) -> Tensor:
        """The random numbers of a task's images, uniform in [0, 1), ``[example, number]``."""
        counts = [_NUMBERS, _AFFINE if self._affine else 0, 2 * _NODES**2 if self.elastic else 0]
        drawn = [rng.random((examples, count), np.float32) for count in counts]
        return torch.from_numpy(np.concatenate(drawn, axis=1))

    def __call__(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Changed images, floats ``[task, example, channel, height, width]``, by ``numbers [task, example, number]``."""
        simple, warp = numbers.flatten(0, 1).tensor_split([_NUMBERS], dim=1)
        flip, down, across, *factors = simple.unbind(1)
        images = x.flatten(0, 1)
        if warp.shape[1]:
            images = self._warped(images, 2 * warp - 1)
        if self.flip or self.crop:
            images = self._moved(images, flip, down, across)
        if self.colour:
            brightness, contrast, saturation = ((1 + self.colour * (2 * f - 1))[:, None, None, None] for f in factors)
            images = images * brightness
            images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
            images = torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)
        return images.view_as(x)

    def _warped(self, images: Tensor, numbers: Tensor) -> Tensor:
        """``images [image, channel, height, width]``, affinely and elastically by ``numbers [image, number]`` from −1 to 1.

        Each pixel of the result is read, bilinearly, from its source. That is a sum of functions of the pixel's place (1,
        down, across, one around each node), the same for all images: one product of matrices gives the sources of all.
        """
        count, _, height, width = images.shape
        down, across = (torch.arange(side).to(images) - (side - 1) / 2 for side in (height, width))
        functions = [torch.ones(height, width).to(images), *torch.meshgrid(down, across, indexing="ij")]
        affine, nodes = numbers.tensor_split([_AFFINE if self._affine else 0], dim=1)
        identity = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).to(images).expand(count, 2, 3)
        weights = [self._affine_weights(affine) if self._affine else identity]
        if self.elastic:
            functions += torch.einsum("hi,wj->ijhw", _bumps(height), _bumps(width)).flatten(0, 1).to(images)
            weights.append(self.elastic * nodes.view(count, 2, -1))
        # grid_sample has (across, down), from −1 to 1 at the outer edges of the outer pixels.
        units = torch.tensor([[2 / width], [2 / height]]).to(images)
        sources = (torch.cat(weights, -1).flip(1) * units) @ torch.stack(functions).flatten(1)
        places, paper = sources.mT.view(count, height, width, 2), _border(images)
        return functional.grid_sample(images - paper, places, align_corners=False) + paper

    def _affine_weights(self, numbers: Tensor) -> Tensor:
        """From (1, down, across) of a place to the (down, across) of its source, ``[image, 2, 3]``: shifted back, turned
        back, and so on."""
        angle, tall, wide, slant, *by = numbers.unbind(1)
        angle = angle * (self.rotation * np.pi / 180)
        cos, sin = angle.cos(), angle.sin()
        down = torch.stack([cos, sin], -1)
        across = torch.stack([-sin, cos], -1) - (self.shear * slant)[:, None] * down
        back = torch.stack([down / (1 + self.scale * tall)[:, None], across / (1 + self.scale * wide)[:, None]], 1)
        return torch.cat([-back @ (self.shift * torch.stack(by, -1))[..., None], back], -1)

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


def _bumps(side: int) -> Tensor:
    """What each node moves of the pixels of a side, ``[pixel, node]``: 1 at its own place, 0 at those of the others."""
    nodes = torch.eye(_NODES)[None, None]
    return functional.interpolate(nodes, (side, _NODES), mode="bicubic", align_corners=True)[0, 0]


def _border(images: Tensor) -> Tensor:
    """The median of each channel's outermost pixels, ``[image, channel, 1, 1]``."""
    edges = [images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]]
    ordered = torch.cat(edges, -1).sort(-1).values  # torch.median has no deterministic kernel on a GPU
    return ordered[..., ordered.shape[-1] // 2, None, None]
