"""Pictures of every mode as 8 bits: 0 is black, 255 white, whatever number the file has for white."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_DEEP = ("I", "F")  # and I;16 with its orders of bytes


def eight_bits(opened: Image.Image, white: float | None = None) -> Image.Image:
    """A picture as ``L`` or ``RGB``, turned as its camera says; what is transparent is white, as paper.

    A channel of more than 8 bits is brought to v / white · 255, rounded.

    Args:
        opened: of any mode.
        white: the number that is white in pictures of more than 8 bits. None means the greatest of their bits where the file
            says how many there are (65535 for 16, 4095 for 12) and 1 for floats from 0 to 1.

    Raises:
        ValueError: a number is below 0, above white or not finite, what is white cannot be known, or ``white`` is given for a
            colour picture of 16 bits a channel, of which Pillow reads the upper 8.
    """
    if (
        white is not None
        and len(opened.getbands()) > 1
        and any("16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
    ):
        raise ValueError(
            "of 16 bits a colour the upper 8 alone are read, so leave --data.source.white out, or save it in 8"
        )
    image = ImageOps.exif_transpose(opened)
    if image.mode in _DEEP or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.float64)
        grey = _scaled(values, opened, image.mode, white)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # 16 bits a channel, of which Pillow reads the upper 8
        image.info["transparency"] = tuple(number >> 8 for number in clear)
    if {"A", "a"} & {*image.getbands()} or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(values: np.ndarray, opened: Image.Image, mode: str, white: float | None) -> np.ndarray:
    """uint8 of numbers from 0 to white."""
    least, most, tags = float(values.min()), float(values.max()), getattr(opened, "tag_v2", {})
    if white is None:
        white = 1.0 if mode == "F" else _white(tags, most)
    if not 0 <= least <= most <= white:
        raise ValueError(
            f"its numbers go from {least:.6g} to {most:.6g} and not from 0 to {white:.6g}; "
            "say which is white by --data.source.white"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns 8 bits round, not more
        values = white - values
    return np.rint(values * (255 / white)).astype(np.uint8)


def _white(tags: Mapping[int, Any], most: float) -> float:
    """The whole number that is white, where the file does not leave it open; without tags there are 16 bits."""
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0] - (tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED)
    if bits <= 16:
        return 2.0**bits - 1
    # 32 bits never mean 2³² − 1 for white: they hold 16 bits, or fewer.
    if 0 < most < 256:
        raise ValueError(
            f"its numbers of 32 bits end at {most:.6g}, and may be of 8 or of 16 bits; "
            "say which is white by --data.source.white, such as 255 or 65535"
        )
    return 65535.0
