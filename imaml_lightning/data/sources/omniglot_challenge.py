"""The Omniglot challenge: one-shot classification within an alphabet that training has not seen, on 20 fixed runs.

Source: Lake, Salakhutdinov, Tenenbaum, "The Omniglot challenge: a 3-year progress report" (2019), sections 2 and 3; the files
are those of github.com/brendenlake/omniglot, folder python.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from imaml_lightning.data.base import Split
from imaml_lightning.data.sources.omniglot import Character, Omniglot, small
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import DataError, UsageError

RUNS_MD5 = "e8996daecdf12afeeb4a53a179f06b19"
RUNS_URL = "https://github.com/brendenlake/omniglot/raw/master/python/one-shot-classification/all_runs.zip"
RUNS, WAY = 20, 20
#: The two minimal background sets, named images_background_small1 and small2 in the repository.
MINIMAL = {
    "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
    "small2": ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"),
}
HELD_OUT = 2  # of the 20 drawings of a background character, for validation


class OmniglotChallenge(Omniglot):
    """Tasks within one alphabet. Test is the 20 official runs: 20-way 1-shot, one query drawing of each character.

    Training takes 18 of the 20 drawings of each background character, validation the other two, so that the choice of a
    checkpoint needs no alphabet more. An alphabet with fewer than ``way`` characters is not drawn from.

    Args:
        root: folder that holds (or gets) torchmeta's ``omniglot`` folder.
        download: fetch it, and the runs, if they are not there.
        runs: the file all_runs.zip; None means ``<root>/omniglot/all_runs.zip``.
        background: ``all`` 30 background alphabets, or one of the minimal sets of five, ``small1`` and ``small2``.
        rotations: let an alphabet turned by a multiple of 90° be another training alphabet.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        runs: str | None = None,
        background: Literal["all", "small1", "small2"] = "all",
        rotations: bool = True,
        cache: str | None = None,
    ) -> None:
        super().__init__(root, download, "random", 0, rotations, cache)
        if background not in ("all", *MINIMAL):
            raise UsageError(f"--data.source.background is all, small1 or small2, but is {background!r}.")
        self.within_groups, self.background = True, background
        self.runs = Path(runs or Path(root) / "omniglot" / "all_runs.zip").expanduser()

    def prepare(self) -> None:
        if self.download and not self.runs.is_file():
            from imaml_lightning.data.archives import fetch

            fetch(RUNS_URL, self.runs, RUNS_MD5)
        super().prepare()

    def recipe(self) -> Mapping[str, object]:
        recipe = dict(super().recipe())
        if not self.runs.is_file():
            raise DataError(
                f"{self.runs} is not there: put the file from {RUNS_URL} there, or name it by --data.source.runs."
            )
        if hashlib.md5(self.runs.read_bytes(), usedforsecurity=False).hexdigest() != RUNS_MD5:
            raise DataError(f"{self.runs} is not the official file, or is damaged: fetch {RUNS_URL} again.")
        return recipe | {"source": f"omniglot-challenge-{self.background}", "runs": RUNS_MD5}

    def usual_way(self) -> int:
        return WAY

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        if split != "train" and (way, shot, query) != (WAY, 1, 1):
            raise UsageError(
                f"The Omniglot challenge tests {WAY}-way 1-shot with one query each: set --data.eval_way {WAY} "
                f"--data.eval_shot 1 --data.eval_query 1 (now {way}, {shot} and {query})."
            )
        super().check(split, way, shot, query)

    def numbers(
        self,
        split: Split,
        rngs: Sequence[np.random.Generator],
        way: int,
        shot: int,
        query: int,
        episodes: Sequence[int] | None = None,
    ) -> Episode:
        if split != "test":
            return super().numbers(split, rngs, way, shot, query, episodes)
        # Runs, their 20 classes, and of each class the training and the test drawing lie one after the other.
        first = self.bank.starts[self.bank.splits["test"].start]
        runs = [int(rng.integers(RUNS)) for rng in rngs] if episodes is None else [n % RUNS for n in episodes]
        support = first + 2 * (WAY * torch.tensor(runs)[:, None] + torch.arange(WAY))
        y = torch.arange(WAY).repeat(len(runs), 1)
        return Episode(Examples(support, y), Examples(support + 1, y))

    def _splits(self) -> dict[Split, list[Character]]:
        background = self._read(False, "train")
        if self.background != "all":
            background = [c for c in background if c[0].split("/")[1] in MINIMAL[self.background]]
        return {
            "train": [(name, images[:-HELD_OUT]) for name, images in background],
            "val": [(name, images[-HELD_OUT:]) for name, images in background],
            "test": _read_runs(self.runs),
        }


def _read_runs(file: Path) -> list[Character]:
    """Each run's classes, named runs/run01/class01 and so on, with the training and the test drawing of each."""
    with zipfile.ZipFile(file) as archive:

        def drawing(name: str) -> np.ndarray:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                return 255 - np.asarray(image.convert("L"))

        characters = []
        for run in range(1, RUNS + 1):
            lines = archive.read(f"run{run:02d}/class_labels.txt").decode().split("\n")
            pairs = sorted(line.split()[::-1] for line in lines if line.strip())  # training drawing, test drawing
            if len(pairs) != WAY:
                raise ValueError(f"run {run} has {len(pairs)} characters")
            for number, names in enumerate(pairs, start=1):
                characters.append((f"runs/run{run:02d}/class{number:02d}", small(np.stack(list(map(drawing, names))))))
    return characters
