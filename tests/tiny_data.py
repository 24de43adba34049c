"""Small data for the tests: a source whose pixels say what they are, and torchmeta's Omniglot folder in small."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from imaml_lightning.data import BankClass, ClassSource, Split

COUNTS: dict[Split, int] = {"train": 12, "val": 7, "test": 6}
IMAGES = 8


class Tiny(ClassSource):
    """Classes of 8 images of 4 x 4 pixels: row 0 holds the class number (counted over all splits), row 1 the
    image number."""

    shape = (1, 4, 4)

    def __init__(self, cache: str | None = None, version: int = 1, within_groups: bool = False) -> None:
        super().__init__(cache, within_groups)
        self.version, self.built = version, 0

    def recipe(self) -> Mapping[str, object]:
        return {"source": "tiny", "version": self.version}

    def build(self) -> Iterator[BankClass]:
        self.built += 1
        number = 0
        for split, count in COUNTS.items():
            for i in range(count):
                images = np.zeros((IMAGES, 1, 4, 4), np.uint8)
                images[:, 0, 0] = number
                images[:, 0, 1] = np.arange(IMAGES)[:, None]
                yield BankClass(split, f"{split}{i}", images, group=f"{split}{i % 2}")
                number += 1


def characters(count: int) -> list[list[str]]:
    """Labels in torchmeta's form."""
    half = count // 2
    return [
        [f"images_{part}", "Alphabet", f"character{i:04d}"]
        for part, n in (("background", half), ("evaluation", count - half))
        for i in range(n)
    ]


def write_omniglot_root(root: Path, count: int = 30, drawings: int = 3, seed: int = 0) -> list[list[str]]:
    """Write ``root/omniglot`` as torchmeta leaves it, with random 105 x 105 drawings; returns the labels.

    The Vinyals lists take the first half of the characters for training, then a quarter each.
    """
    folder = root / "omniglot"
    folder.mkdir(parents=True)
    labels = characters(count)
    rng = np.random.default_rng(seed)
    with h5py.File(folder / "data.hdf5", "w") as store:
        for label in labels:
            coarse = rng.integers(0, 2, (drawings, 15, 15), dtype=np.uint8) * np.uint8(255)
            store["/".join(label)] = coarse.repeat(7, axis=1).repeat(7, axis=2)
    half, three = count // 2, 3 * count // 4
    lists = {
        "train": labels[:half],
        "test": labels[half:],
        "vinyals_train": labels[:half],
        "vinyals_val": labels[half:three],
        "vinyals_test": labels[three:],
    }
    for name, members in lists.items():
        (folder / f"{name}_labels.json").write_text(json.dumps(members))
    return labels
