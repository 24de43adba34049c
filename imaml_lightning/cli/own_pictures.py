"""Folders of a person's own pictures, read as those of the training were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imaml_lightning.data.images import PictureReader, class_folders, image_files, warn_of_other_files
from imaml_lightning.data.notice import some
from imaml_lightning.errors import UsageError


def picture_reader(reading: Mapping[str, Any], folder: str, leave_out: bool = False) -> PictureReader:
    """The reader of a checkpoint.

    Raises:
        UsageError: it was not trained on pictures.
    """
    if len(reading.get("shape", ())) != 3:
        raise UsageError(f"this checkpoint was not trained on images, and {folder} is no table: give a .csv file")
    return PictureReader(reading["shape"], reading["ink"], reading.get("white"), leave_out)


def read_support(reader: PictureReader, folder: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Pictures ``[example, channel, height, width]``, the class of each, and their files.

    Raises:
        UsageError: there are none, or one cannot be read and shall not be left out.
    """
    advice = "give a folder with one folder for each class."
    at = class_folders(Path(folder), advice)
    files = [file for one in at for file in image_files(one)]
    names = {file: one.name for one in at for file in image_files(one)}
    if not files:
        raise UsageError(f"no pictures in {folder}: put them into a folder for each class, {folder}/class/*.png")
    x, kept = _read(reader, files)
    y = [names[file] for file in kept]
    if gone := sorted({*names.values()} - {*y}):
        raise UsageError(f"no picture of {some(gone)} in {folder} can be read: mend one, or take the folder away")
    return x, np.array(y), kept


def read_query(reader: PictureReader, folder: str) -> tuple[np.ndarray, list[Path]]:
    """Pictures ``[example, channel, height, width]`` and their files.

    Raises:
        UsageError: there are none, or one cannot be read and shall not be left out.
    """
    files = image_files(Path(folder))
    warn_of_other_files([Path(folder)], Path(folder))
    if not files:
        raise UsageError(f"no pictures in {folder}: put there what is to be predicted")
    x, kept = _read(reader, files)
    if not kept:
        raise UsageError(f"no picture in {folder} can be read: mend one")
    return x, kept


def _read(reader: PictureReader, files: Sequence[Path]) -> tuple[np.ndarray, list[Path]]:
    """The pictures that can be read, and their files."""
    pictures = [(file, one) for file in files for one in reader.read([file])]
    return np.stack([one for _, one in pictures]) if pictures else np.empty(0), [file for file, _ in pictures]


def check_folders(*folders: str) -> None:
    """Refuse what is no folder, before any of them is read."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise UsageError(f"{folder} is not a folder: give the folder of your pictures (or a .csv table)")
