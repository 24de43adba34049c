"""ImageFolder: the user's own pictures, one folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS, Split
from imaml_lightning.data.class_source import ClassSource, progress
from imaml_lightning.data.images import PictureReader, class_folders, image_files, subfolders
from imaml_lightning.data.notice import some, warn
from imaml_lightning.data.split import check_fractions, draw_split
from imaml_lightning.errors import DataError, UsageError, check_at_least, check_positive

_DEEPER = (
    "set --data.source.grouped true if they are groups of classes (sites, patients), or name them train, val and test if they "
    "are splits."
)
_TOO_DEEP = "move the pictures up if the folders within are no classes."


class _Folder(NamedTuple):
    split: Split
    group: str
    name: str
    files: list[Path]


class ImageFolder(ClassSource):
    """Few-shot classification of the pictures in ``root``.

    Either ``root/train/class/*.png`` with ``val`` and ``test`` beside ``train``, or ``root/class/*.png``, in which case
    classes are divided by ``fractions``. With ``grouped``, one more level, ``…/group/class/*.png``: groups (patients,
    sites, alphabets) are then kept together in the split, so that nothing of a test group is seen in training.

    Args:
        root: the folder.
        size: height and width in pixels to which pictures are resized, after a crop of the middle to a square.
        channels: 3 for colour, 1 for grey.
        ink: drawings on light paper; ink becomes 255 and paper 0.
        grouped: classes lie in folders of groups.
        within_groups: draw the classes of a task from one group.
        rotations: let a training class turned by a multiple of 90° be another class, where the upright is no clue.
        fractions: shares of the classes for train, val and test where the folder does not say.
        split_seed: of that division.
        white: the number that is white in pictures of more than 8 bits. None means the greatest of their bits where the
            file says how many there are (65535 for 16), and 1 for floats from 0 to 1.
        min_examples: leave out classes with fewer pictures, with a warning that counts them.
        leave_out: leave out files that cannot be read, with a warning that names them; else they are refused.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    def __init__(
        self,
        root: str,
        size: int = 84,
        channels: Literal[1, 3] = 3,
        ink: bool = False,
        grouped: bool = False,
        within_groups: bool = False,
        rotations: bool = False,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        cache: str | None = None,
        white: float | None = None,
        min_examples: int = 1,
        leave_out: bool = False,
    ) -> None:
        super().__init__(cache, within_groups)
        check_at_least(1, "--data.source", min_examples=min_examples)
        if white is not None:
            check_positive("--data.source", white=white)
        if size < 1:
            raise UsageError(f"--data.source.size must be at least 1 pixel, but is {size}.")
        if within_groups and not grouped:
            raise UsageError("--data.source.within_groups needs folders of groups: set --data.source.grouped true too.")
        check_fractions(fractions, split_seed)
        self.root, self.shape, self.ink = root, (channels, size, size), ink
        self.white, self.min_examples, self.leave_out = white, min_examples, leave_out
        self.grouped, self.rotations, self.fractions, self.split_seed = grouped, rotations, tuple(fractions), split_seed

    def recipe(self) -> Mapping[str, object]:
        root, digest = Path(self.root).expanduser(), hashlib.sha256()
        for folder in self._folders():
            digest.update(f"{folder.split}/{folder.group}/{folder.name}".encode())
            for file in folder.files:
                # Pictures are not read at every start: size and time stand for their content.
                state = file.stat()
                digest.update(f"{file.relative_to(root)} {state.st_size} {state.st_mtime_ns}".encode())
        return {
            "source": "folder",
            "version": 2,
            "root": str(root.resolve()),
            "shape": self.shape,
            "ink": self.ink,
            "rotations": self.rotations,
            "white": self.white,
            "min_examples": self.min_examples,
            "leave_out": self.leave_out,
            "files": digest.hexdigest(),
        }

    def reading(self) -> dict[str, Any]:
        return {**super().reading(), "white": self.white}

    def build(self) -> Iterator[BankClass]:
        reader, small, kept = PictureReader(self.shape, self.ink, self.white, self.leave_out), list[str](), 0
        for split, group, name, files in progress(self._folders(), f"Reading {self.root}"):
            images, label = reader.read(files), f"{group}/{name}" if group else name
            if len(images) < self.min_examples:  # after broken files were left out
                small.append(label)
                continue
            kept += 1
            yield BankClass(split, label, images, group)
            for quarter in range(1, 4) if self.rotations and split == "train" else ():
                turned = np.rot90(images, quarter, axes=(-2, -1))
                yield BankClass(split, f"{label} {90 * quarter}°", turned, group and f"{group} {90 * quarter}°")
        reader.report()
        self._warn_of_small(small)
        if not kept:
            raise DataError(f"No class of {self.root} is left: mend its pictures, or lower --data.source.min_examples.")

    def _folders(self) -> list[_Folder]:
        """The classes, split by split, in the order of their names."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: let --data.source.root name the folder of your classes.")
        given = {split: root / split for split in SPLITS if (root / split).is_dir()}
        if given and (missing := [split for split in SPLITS if split not in given]):
            raise DataError(
                f"{root} has {' and '.join(given)} but no {missing[0]}: make the folder {root / missing[0]}."
            )
        if given:
            if others := [p.name for p in subfolders(root) if p.name not in SPLITS]:
                warn(f"{root} has {', '.join(SPLITS)}; its other folders are not used: {some(others)}")
            found = [_Folder(s, g, n, files) for s, at in given.items() for g, n, files in self._classes(at)]
        else:
            classes = self._classes(root)
            drawn = draw_split([g if self.grouped else n for g, n, _ in classes], self.fractions, self.split_seed)
            found = [_Folder(drawn[g if self.grouped else n], g, n, files) for g, n, files in classes]
        if not found:
            wanted = "group/class/*.png" if self.grouped else "class/*.png"
            raise DataError(f"No pictures in {root}: they are looked for at {root}/{wanted}, one folder a class.")
        return sorted(found, key=lambda folder: SPLITS.index(folder.split))

    def _classes(self, folder: Path) -> list[tuple[str, str, list[Path]]]:
        """(group, class, pictures) of each class below a folder; the group is empty where there are none."""
        if self.grouped:
            members = [(group.name, at) for group in subfolders(folder) for at in class_folders(group, _TOO_DEEP)]
        else:
            members = [("", at) for at in class_folders(folder, _DEEPER)]
        classes = [(group, at.name, image_files(at)) for group, at in members]
        if empty := [name for _, name, files in classes if not files]:
            warn(f"{len(empty):,} folders in {folder} hold no picture and are no class: {some(empty)}")
        self._warn_of_small([name for _, name, files in classes if 0 < len(files) < self.min_examples])
        return [one for one in classes if len(one[2]) >= self.min_examples]

    def _warn_of_small(self, names: list[str]) -> None:
        if names:
            warn(
                f"{len(names):,} classes of {self.root} with fewer than {self.min_examples} pictures are left out: {some(names)}"
            )
