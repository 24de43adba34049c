"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., Science 2015)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from PIL import Image

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS, Split
from imaml_lightning.data.class_source import ClassSource, progress
from imaml_lightning.errors import DataError, UsageError

SIDE = 28
Character = tuple[str, np.ndarray]  # a name, and its drawings [example, channel, height, width]
TRAIN, HELD_OUT = 1200, 100  # characters of the random split's training part; of it, for validation


class Omniglot(ClassSource):
    """Omniglot at 28 x 28 (bilinear, antialiased), ink = 255, read through torchmeta.

    Args:
        root: folder that holds (or gets) torchmeta's ``omniglot`` folder.
        download: fetch it if it is not there, or not complete.
        splits: ``vinyals`` is torchmeta's 1028 / 172 / 423 characters; ``random`` is the iMAML paper's 1200 for
            training and 423 for test, drawn from all characters by ``split_seed``. The paper names no
            validation characters: 100 of the 1200 are held out for choosing a model, 1100 are trained on.
        split_seed: of the random split; without effect on ``vinyals``.
        rotations: let the four rotations of a training character by multiples of 90° be four classes.
            Validation and test characters are always upright.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    shape = (1, SIDE, SIDE)
    ink = True

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        splits: Literal["vinyals", "random"] = "vinyals",
        split_seed: int = 0,
        rotations: bool = True,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        if splits not in ("vinyals", "random"):
            raise UsageError(f"--data.source.splits is 'vinyals' or 'random', but is {splits!r}.")
        if split_seed < 0:
            raise UsageError(f"--data.source.split_seed must be at least 0, but is {split_seed}.")
        self.root, self.download = root, download
        self.splits, self.split_seed, self.rotations = splits, split_seed, rotations

    def prepare(self) -> None:
        if self.download and self._missing():
            from imaml_lightning.data.torchmeta.omniglot import download_omniglot

            download_omniglot(self.root)
        super().prepare()

    def _missing(self) -> list[str]:
        from imaml_lightning.data.torchmeta.omniglot import FILES, omniglot_folder

        folder = omniglot_folder(self.root)
        return [name for name in FILES if not (folder / name).is_file()]

    def recipe(self) -> Mapping[str, object]:
        from imaml_lightning.data.torchmeta.omniglot import FILES, omniglot_folder

        folder = omniglot_folder(self.root)
        if missing := self._missing():
            raise DataError(
                f"Omniglot is not complete in {folder}: put {', '.join(missing)} (as torchmeta writes them) there, "
                "or let it be fetched by --data.source.download true."
            )
        images, *lists = (folder / name for name in FILES)
        digest = hashlib.sha256()
        for path in lists:
            digest.update(path.read_bytes())
        return {
            "source": f"omniglot-{self.splits}",
            "version": 1,
            "split_seed": self.split_seed if self.splits == "random" else None,
            "rotations": self.rotations,
            # 358 MB are not read at every start: the file's size and time stand for its content.
            "images": [images.stat().st_size, images.stat().st_mtime_ns],
            "lists": digest.hexdigest(),
        }

    def build(self) -> Iterator[BankClass]:
        try:
            for split, characters in self._splits().items():
                turns = range(4) if self.rotations and split == "train" else range(1)
                for quarter in turns:
                    for name, images in characters:
                        turned = np.rot90(images, quarter, axes=(-2, -1))
                        label = f"{name} {90 * quarter}°" if len(turns) > 1 else name
                        yield BankClass(split, label, turned, f"{name.split('/')[1]} {90 * quarter}°")
        except (OSError, KeyError, ValueError) as error:
            from imaml_lightning.data.torchmeta.omniglot import omniglot_folder

            raise DataError(
                f"Omniglot in {omniglot_folder(self.root)} is damaged ({error}); remove its data.hdf5 and run again "
                "with --data.source.download true."
            ) from error

    def _splits(self) -> dict[Split, list[Character]]:
        if self.splits == "vinyals":
            return {split: self._read(True, split) for split in SPLITS}
        characters = self._read(False, "train") + self._read(False, "test")
        if len(characters) <= TRAIN:
            raise ValueError(f"only {len(characters)} characters in its lists")
        # Drawn from the sorted names, so that the split does not depend on the order in the lists.
        order = np.argsort(np.array([name for name, _ in characters]))
        order = order[np.random.default_rng(self.split_seed).permutation(len(order))]
        parts = np.split(order, [TRAIN - HELD_OUT, TRAIN])
        return {split: [characters[i] for i in part] for split, part in zip(SPLITS, parts, strict=True)}

    def _read(self, vinyals: bool, split: str) -> list[Character]:
        from imaml_lightning.data.torchmeta.omniglot import omniglot_characters

        names, characters = omniglot_characters(self.root, vinyals, split)
        bar = progress(characters, f"Reading Omniglot, {split} characters", len(names))
        return [(name, small(drawings)) for name, drawings in zip(names, bar, strict=True)]


def small(drawings: np.ndarray) -> np.ndarray:
    """``[image, 105, 105]`` to ``[image, channel, height, width]``; PIL's bilinear filter antialiases."""
    size = (SIDE, SIDE)
    return np.stack([np.asarray(Image.fromarray(d).resize(size, Image.Resampling.BILINEAR)) for d in drawings])[:, None]
