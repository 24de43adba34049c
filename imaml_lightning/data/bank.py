"""ClassBank: all images of a data set as one memory-mapped uint8 array in one file.

The file is one line of JSON (the header), then the raw array. One file, written under a temporary
name and renamed, is either whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imaml_lightning.data.base import Split
from imaml_lightning.errors import UsageError

FORMAT = "imaml_lightning class bank 1"
_ABANDONED_AFTER = 3600.0  # seconds without a write: no build is that slow
Recipe = Mapping[str, Any]


class ClassBank:
    """An open bank: ``images [class, image, channel, height, width]``, uint8, ink = 255.

    Attributes:
        path: the file.
        header: its header: format, recipe, shape, names and splits.
        splits: split -> range of its classes.
        names: one name a class.
    """

    def __init__(self, path: Path, header: dict[str, Any], offset: int) -> None:
        self.path = path
        self.header = header
        self.splits = {split: range(*ends) for split, ends in header["splits"].items()}
        self.names: list[str] = header["names"]
        self._offset = offset
        self._map()

    def _map(self) -> None:
        mapped = np.memmap(self.path, np.uint8, "r", self._offset, tuple(self.header["shape"]))
        # A plain view: np.memmap runs Python code at every index, which would halve the sampling speed.
        self.images = mapped.view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the file itself; pickling the array would copy the data set.
        return {name: value for name, value in vars(self).items() if name != "images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    @classmethod
    def open(cls, path: Path, recipe: Recipe) -> ClassBank | None:
        """The bank at ``path``, or None if it is absent, cut short, or made by another recipe."""
        try:
            with open(path, "rb") as file:
                line = file.readline(1 << 24)
                header = json.loads(line)
                size = os.fstat(file.fileno()).st_size
            whole = size == len(line) + int(np.prod(header["shape"]))
            if header["format"] != FORMAT or header["recipe"] != _plain(recipe) or not whole:
                return None
            return cls(path, header, len(line))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def write(cls, path: Path, recipe: Recipe, classes: Mapping[Split, tuple[list[str], np.ndarray]]) -> ClassBank:
        """Write a bank whole or not at all, and open it.

        Args:
            path: where; the folder is made.
            recipe: all that decides the content (source, version, options, fingerprints of inputs).
            classes: split -> (names, images ``[class, image, channel, height, width]`` uint8).

        Raises:
            UsageError: the folder cannot be written, or the disk is full.
        """
        arrays = [images for _, images in classes.values()]
        ends = np.cumsum([0, *map(len, arrays)]).tolist()
        header = {
            "format": FORMAT,
            "recipe": _plain(recipe),
            "shape": [ends[-1], *arrays[0].shape[1:]],
            "splits": {s: [a, b] for s, a, b in zip(classes, ends[:-1], ends[1:], strict=True)},
            "names": [name for names, _ in classes.values() for name in names],
        }
        # The name is unique, so two processes that build at once do not meet: the last rename wins.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            with open(temporary, "xb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                for images in arrays:
                    file.write(np.ascontiguousarray(images, np.uint8).data)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the data does
            os.replace(temporary, path)
        except OSError as error:
            raise UsageError(
                f"Cannot write the class bank {path}: {error.strerror or error}; make room there, or name "
                "another folder by --data.source.cache or the variable IMAML_CACHE."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        bank = cls.open(path, recipe)
        if bank is None:  # another recipe was renamed over it at once: a clash of file names
            raise RuntimeError(f"{path} changed while it was being opened")
        return bank


def bank_path(cache: str | None, recipe: Recipe) -> Path:
    """Where the bank of a recipe lies: ``<cache>/<source>-<hash of the recipe>.bank``.

    ``cache`` None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``. With the hash in the name, runs
    with other options do not rebuild each other's banks in turn.
    """
    folder = cache or os.environ.get("IMAML_CACHE") or "~/.cache/imaml_lightning"
    digest = hashlib.sha256(json.dumps(_plain(recipe), sort_keys=True).encode()).hexdigest()
    return Path(folder).expanduser() / f"{recipe['source']}-{digest[:12]}.bank"


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(dict(recipe)))


def _sweep(folder: Path) -> None:
    """Remove what killed builds left behind."""
    for orphan in folder.glob(".*.bank.*.part"):
        try:
            if time.time() - orphan.stat().st_mtime > _ABANDONED_AFTER:
                orphan.unlink()
        except OSError:
            continue  # swept by another process, or not ours to remove
