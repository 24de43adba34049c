"""ClassBank: all examples of a data set as one memory-mapped array in one file, class after class.

The file is the raw array, then one line of JSON (the header), then the header's length in eight bytes. It is written
class by class, so nothing needs to fit in memory; under a temporary name and renamed, it is either whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from imaml_lightning.data.base import Split
from imaml_lightning.errors import DataError

FORMAT = "imaml_lightning class bank 2"
_ABANDONED_AFTER = 3600.0  # seconds without a write: no build is that slow
Recipe = Mapping[str, Any]


class BankClass(NamedTuple):
    """One class of a bank: ``examples [example, *feature]``, uint8 images or float32 features.

    ``group`` is what the class belongs to (an alphabet, a patient, a site); empty where there is no such thing.
    """

    split: Split
    name: str
    examples: np.ndarray
    group: str = ""


class ClassBank:
    """An open bank.

    Attributes:
        path: the file.
        header: format, recipe, type, shape, and what follows.
        splits: split -> range of its classes.
        names, groups: one of each a class.
        starts: ``[class + 1]``; the examples of class c are those from ``starts[c]`` to ``starts[c + 1] − 1``.
        counts: ``[class]``, how many each has.
        examples: ``[example, *feature]``, mapped: only what is asked for is read.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.splits: dict[Split, range] = {split: range(*ends) for split, ends in header["splits"].items()}
        self.names: list[str] = header["names"]
        self.groups: list[str] = header["groups"]
        self.starts = np.array(header["starts"], np.intp)
        self.counts = np.diff(self.starts)
        self._map()

    def _map(self) -> None:
        mapped = np.memmap(self.path, self.header["type"], "r", 0, tuple(self.header["shape"]))
        # A plain view: np.memmap runs Python code at every index, which would halve the sampling speed.
        self.examples = mapped.view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the file itself; pickling the array would copy the data set.
        return {name: value for name, value in vars(self).items() if name != "examples"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def of_class(self, number: int) -> np.ndarray:
        """The examples ``[example, *feature]`` of one class."""
        return self.examples[self.starts[number] : self.starts[number + 1]]

    @classmethod
    def open(cls, path: Path, recipe: Recipe) -> ClassBank | None:
        """The bank at ``path``, or None if it is absent, cut short, or made by another recipe."""
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(size - 8)
                length = int.from_bytes(file.read(8), "little")
                file.seek(size - 8 - length)
                header = json.loads(file.read(length))
            array = int(np.prod(header["shape"])) * np.dtype(header["type"]).itemsize
            if header["format"] != FORMAT or header["recipe"] != _plain(recipe) or size != array + length + 8:
                return None
            return cls(path, header)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def write(cls, path: Path, recipe: Recipe, classes: Iterable[BankClass]) -> ClassBank:
        """Write a bank whole or not at all, and open it.

        Args:
            path: where; the folder is made.
            recipe: all that decides the content (source, version, options, fingerprints of inputs).
            classes: those of a split together, all examples of one shape and type, no class empty.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
        """
        # The name is unique, so two processes that build at once do not meet: the last rename wins.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with _explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                _sweep(path.parent)
                file = temporary.open("xb")
            with file:
                _write(file, path, _plain(recipe), classes)
            with _explained(path):
                os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        bank = cls.open(path, recipe)
        if bank is None:  # another recipe was renamed over it at once: a clash of file names
            raise RuntimeError(f"{path} changed while it was being opened")
        return bank


def _write(file: BinaryIO, path: Path, recipe: dict[str, Any], classes: Iterable[BankClass]) -> None:
    splits: dict[str, list[int]] = {}
    names: list[str] = []
    groups: list[str] = []
    starts = [0]
    first: np.ndarray | None = None
    for split, name, examples, group in classes:
        first = examples if first is None else first
        if not len(examples) or examples.shape[1:] != first.shape[1:] or examples.dtype != first.dtype:
            raise ValueError(f"class {name} has examples {examples.dtype} {examples.shape} beside {first.shape}")
        ends = splits.setdefault(split, [len(names), len(names)])
        if ends[1] != len(names):
            raise ValueError(f"class {name} does not follow the others of {split}")
        ends[1] += 1
        names.append(name)
        groups.append(group)
        starts.append(starts[-1] + len(examples))
        with _explained(path):
            file.write(np.ascontiguousarray(examples).data)
    if first is None:
        raise ValueError("a bank needs a class")
    header = {
        "format": FORMAT,
        "recipe": recipe,
        "type": first.dtype.name,
        "shape": [starts[-1], *first.shape[1:]],
        "splits": splits,
        "names": names,
        "groups": groups,
        "starts": starts,
    }
    line = json.dumps(header).encode() + b"\n"
    with _explained(path):
        file.write(line + len(line).to_bytes(8, "little"))
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the data does


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says what to do where ``path`` cannot be written; the reading of the data set explains itself."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write the class bank {path}: {error.strerror or error}; make room there, or name "
            "another folder by --data.source.cache or the variable IMAML_CACHE."
        ) from error


def bank_path(cache: str | None, recipe: Recipe) -> Path:
    """Where the bank of a recipe lies: ``<cache>/<source>-<hash of the recipe>.bank``.

    ``cache`` None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``. With the hash in the name, runs
    with other options do not rebuild each other's banks in turn.
    """
    folder = cache or os.environ.get("IMAML_CACHE") or "~/.cache/imaml_lightning"
    digest = hashlib.sha256(json.dumps([FORMAT, _plain(recipe)], sort_keys=True).encode()).hexdigest()
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
