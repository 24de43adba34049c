"""Reading of the user's pictures, the same in training and in ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from imaml_lightning.data.notice import some, warn
from imaml_lightning.data.pixels import eight_bits
from imaml_lightning.errors import DataError

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".tga"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
}

_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini"}


def is_picture(file: Path) -> bool:
    """Whether its name is that of a picture, and not hidden."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, in the order of their names; hidden files and folders are passed over."""
    return sorted(
        file
        for file in folder.rglob("*")
        if is_picture(file) and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def warn_of_other_files(folders: Sequence[Path], where: Path) -> None:
    """Warns of files in ``folders`` that are no pictures, or of a kind that is not read; not of hidden ones."""
    found = [p for at in folders for p in at.rglob("*") if p.is_file() and p.suffix.lower() not in SUFFIXES]
    if others := [p for p in found if not p.name.startswith(".") and p.name.lower() not in _OF_THE_SYSTEM]:
        kinds = sorted({p.suffix.lower() or p.name for p in others})
        warn(f"{len(others):,} files in {where} are of other kinds than pictures, and are not used: {some(kinds)}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def class_folders(folder: Path, advice: str) -> list[Path]:
    """The folders in a folder, each a class. Warns of what lies on another level: of pictures beside the folders, and of
    classes whose pictures all lie in folders of their own, as where the folders are groups. ``advice`` says what to do then.
    """
    folders = subfolders(folder)
    if loose := [p.name for p in sorted(folder.iterdir()) if is_picture(p)]:
        warn(f"{len(loose):,} pictures lie in {folder} itself, in no class, and are not used: {some(loose)}")
    deep = [p.name for p in folders if (files := image_files(p)) and all(file.parent != p for file in files)]
    if deep:
        warn(
            f"the pictures of {some(deep)} in {folder} lie one folder deeper, and each of these is taken as one class: {advice}"
        )
    warn_of_other_files(folders, folder)
    return folders


@dataclass
class PictureReader:
    """Reads pictures as uint8 ``[channel, height, width]``: turned as their camera says, cropped to the middle, resized.

    Args:
        shape: channel (1 is grey, 3 is colour), height and width in pixels.
        ink: drawings, of which ink shall be 255 and paper 0: light pictures are inverted.
        white: the number that is white in pictures of more than 8 bits (see ``eight_bits``).
        leave_out: leave out what cannot be read, rather than refuse it.
    """

    shape: Sequence[int]
    ink: bool = False
    white: float | None = None
    leave_out: bool = False
    left_out: list[str] = field(default_factory=list)
    animated: list[str] = field(default_factory=list)

    def read(self, files: Sequence[Path]) -> np.ndarray:
        """Pictures ``[picture, channel, height, width]``, without those left out.

        Raises:
            DataError: naming the file, if it is not a picture or is damaged, and shall not be left out.
        """
        pictures = []
        for file in files:
            try:
                pictures.append(self._one(file))
            except DataError as error:
                if not self.leave_out:
                    raise
                self.left_out.append(str(error).partition(": repair")[0])
        return np.stack(pictures) if pictures else np.empty((0, *self.shape), np.uint8)

    def report(self) -> None:
        """Warn of what was left out so far, and of pictures with several frames."""
        if self.left_out:
            warn(f"{len(self.left_out):,} files are left out: {some(self.left_out)}")
        if self.animated:
            warn(
                f"{len(self.animated):,} pictures have several frames, of which the first is read: {some(self.animated)}"
            )

    def _one(self, file: Path) -> np.ndarray:
        picture, frames = _read(file, self.shape, self.ink, self.white)
        if frames > 1:
            self.animated.append(str(file))
        return picture


def read_image(
    file: Path | BinaryIO, shape: Sequence[int], ink: bool = False, white: float | None = None
) -> np.ndarray:
    """A picture as uint8 ``[channel, height, width]``: turned as its camera says, cropped to the middle, resized.

    Args:
        file: anything that Pillow reads, of any mode and depth (see ``eight_bits``); of an animation the first frame.
        shape: channel (1 is grey, 3 is colour), height and width in pixels.
        ink: a drawing, of which ink shall be 255 and paper 0: light pictures are inverted.
        white: the number that is white in a picture of more than 8 bits.

    Raises:
        DataError: naming the file, if it is not a picture or is damaged.
    """
    return _read(file, shape, ink, white)[0]


def _read(file: Path | BinaryIO, shape: Sequence[int], ink: bool, white: float | None) -> tuple[np.ndarray, int]:
    """The picture, and how many frames the file has."""
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            image = eight_bits(opened, white).convert("L" if channels == 1 else "RGB")
            array = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
    except Exception as error:  # a damaged file leads decoders to errors of any kind
        name = getattr(file, "name", file) if not isinstance(file, Path) else file
        raise DataError(f"{name} cannot be read as a picture ({error}): repair it, or take it away.") from error
    if ink and array.mean() > 127:
        array = 255 - array
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), frames
