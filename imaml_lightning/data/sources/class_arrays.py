"""Classes from a table, or from tensors in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.features import Features
from imaml_lightning.data.sources.tasks import row_splits
from imaml_lightning.data.split import check_fractions
from imaml_lightning.data.table import Column, column, read_table
from imaml_lightning.errors import DataError, UsageError


class ClassTable(ClassSource):
    """Few-shot classification of the rows of a table, whose classes are divided between train, val and test.

    For tables in which every row belongs to a task of its own, see :class:`TaskTable`. Features are brought to mean 0 and
    deviation 1 by those of the training rows.

    Args:
        path: a .csv file (or .parquet, with pyarrow).
        target: the column of class names.
        features: the columns to predict from; None means every numeric one but the other columns named here.
        split_column: whose cells are train, val or test, one for all rows of a class; None draws a split.
        group_column: classes of one group stay together in the drawn split.
        within_groups: draw the classes of a task from one group.
        fractions: shares of the classes for train, val and test in the drawn split.
        split_seed: of the drawn split.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    def __init__(
        self,
        path: str,
        target: str,
        features: Sequence[str] | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        within_groups: bool = False,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache, within_groups)
        check_fractions(fractions, split_seed)
        if within_groups and not group_column:
            raise UsageError(
                "--data.source.within_groups needs groups: name their column by --data.source.group_column."
            )
        self.path, self.target, self.features = path, target, features
        self.split_column, self.group_column = split_column, group_column
        self.fractions, self.split_seed = tuple(fractions), split_seed
        self._read: tuple[dict[str, Column], np.ndarray, Features] | None = None

    def recipe(self) -> Mapping[str, object]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise DataError(f"{file} does not exist: name a .csv or .parquet file.")
        options = (self.target, self.features, self.split_column, self.group_column, self.fractions, self.split_seed)
        return {
            "source": "table",
            "version": 1,
            "content": hashlib.sha256(file.read_bytes()).hexdigest(),
            "options": [list(o) if isinstance(o, tuple) else o for o in options],
        }

    def setup(self) -> None:
        super().setup()
        self.shape = self.bank.examples.shape[1:]

    def reading(self) -> dict[str, Any]:
        return {"features": self._table()[2].plain(), "target": self.target}

    def build(self) -> Iterator[BankClass]:
        table, where, features = self._table()
        x, y = features.of(table, self.path), np.array(column(table, self.target, self.path))
        groups = column(table, self.group_column, self.path) if self.group_column else [""] * len(y)
        for split in SPLITS:
            for name in np.unique(y[where == split]).tolist():
                rows = np.flatnonzero(y == name)
                yield BankClass(split, name, x[rows], groups[rows[0]])

    def _table(self) -> tuple[dict[str, Column], np.ndarray, Features]:
        if self._read is None:
            table = read_table(self.path)
            y = column(table, self.target, self.path)
            where = row_splits(
                table, y, self.path, self.split_column, self.group_column, self.fractions, self.split_seed
            )
            taken = [self.target, self.split_column, self.group_column]
            if not (where == "train").any():
                raise DataError(f"{self.path} has no rows for train: mark some in column {self.split_column}.")
            features = Features.fit(table, where == "train", self.path, self.features, [n for n in taken if n])
            self._read = table, where, features
        return self._read


class ClassTensors(ClassSource):
    """Few-shot classification of examples that Python already holds.

        EpisodeDataModule(ClassTensors(x, y), way=5, shot=1)

    They are copied into a bank, so that worker processes share them; its name is a hash of the content.

    Args:
        x: uint8 images ``[example, channel, height, width]``, or floats ``[example, *feature]``; tensor or array.
        y: the class of each example, whole numbers or strings.
        split: train, val or test for each example, one for all of a class; None draws a split of the classes.
        fractions, split_seed: of the drawn split.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        split: Sequence[str] | None = None,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        check_fractions(fractions, split_seed)
        x, y = np.asarray(x), np.asarray(y)
        if len(x) != len(y) or (split is not None and len(split) != len(y)):
            raise UsageError(f"{len(x)} inputs with {len(y)} targets: give one target, and one split, for each input.")
        self.x = np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32))
        self.y, self.shape = y.astype(str), x.shape[1:]
        table = {"y": self.y.tolist(), **({} if split is None else {"split": list(split)})}
        self.where = row_splits(table, table["y"], "x, y", "split" if split else None, None, fractions, split_seed)

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> ClassTensors:
        """From any torch Dataset of pairs (input, class): inputs tensors, arrays or Pillow images of one size."""
        pairs = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
        x = np.stack([np.asarray(x) for x, _ in pairs])
        if not hasattr(pairs[0][0], "shape"):  # Pillow's: [height, width] or [height, width, channel]
            x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        return cls(x, [int(y) if hasattr(y, "__int__") else y for _, y in pairs], **options)

    def recipe(self) -> Mapping[str, object]:
        digest = hashlib.sha256(self.x.data)
        for part in (self.y, self.where):
            digest.update("\0".join(part.tolist()).encode())
        return {"source": "tensors", "version": 1, "shape": self.x.shape, "content": digest.hexdigest()}

    def build(self) -> Iterator[BankClass]:
        for split in SPLITS:
            for name in np.unique(self.y[self.where == split]).tolist():
                yield BankClass(split, name, self.x[self.y == name])
