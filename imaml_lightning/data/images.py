"""Reading of the user's pictures, the same in training and in ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from imaml_lightning.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, in the order of their names; hidden files are passed over."""
    files = folder.rglob("*")
    return sorted(f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file())


def read_image(file: Path | BinaryIO, shape: Sequence[int], ink: bool = False) -> np.ndarray:
    """A picture as uint8 ``[channel, height, width]``: turned as its camera says, cropped to the middle, resized.

    Args:
        file: anything that Pillow reads; of an animation the first frame.
        shape: channel (1 is grey, 3 is colour), height and width in pixels.
        ink: a drawing, of which ink shall be 255 and paper 0: light pictures are inverted.

    Raises:
        DataError: naming the file, if it is not a picture or is damaged.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if "A" in upright.getbands() or "transparency" in upright.info:  # see-through is paper
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
            image = upright.convert("L" if channels == 1 else "RGB")
            array = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = getattr(file, "name", file)
        raise DataError(f"{name} cannot be read as a picture ({error}): repair it, or take it away.") from error
    if ink and array.mean() > 127:
        array = 255 - array
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
