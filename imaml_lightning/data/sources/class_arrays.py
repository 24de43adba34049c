"""Classes from a table, or from tensors in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.columns import usable
from imaml_lightning.data.features import Features
from imaml_lightning.data.notice import some, warn
from imaml_lightning.data.pixels import eight_bits
from imaml_lightning.data.split import check_fractions, row_splits
from imaml_lightning.data.table import Table, read_table
from imaml_lightning.episode import check_pixels
from imaml_lightning.errors import DataError, UsageError, check_at_least


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
        impute: put the mean of the training rows into empty cells of features, and add for each column that has some a
            feature that is 1 there and else 0; without it they are refused.
        min_examples: leave out classes with fewer rows, with a warning that counts them.
        leave_out: leave out rows with empty cells, with a warning that counts them; else they are refused.
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
        impute: bool = False,
        min_examples: int = 1,
        leave_out: bool = False,
    ) -> None:
        super().__init__(cache, within_groups)
        check_at_least(1, "--data.source", min_examples=min_examples)
        check_fractions(fractions, split_seed)
        if within_groups and not group_column:
            raise UsageError(
                "--data.source.within_groups needs groups: name their column by --data.source.group_column."
            )
        self.path, self.target, self.features = path, target, features
        self.split_column, self.group_column = split_column, group_column
        self.fractions, self.split_seed = tuple(fractions), split_seed
        self.impute, self.min_examples, self.leave_out = impute, min_examples, leave_out
        self._features: Features | None = None

    def recipe(self) -> Mapping[str, object]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise DataError(f"{file} does not exist: name a .csv or .parquet file.")
        options = (
            *(self.target, self.features, self.split_column, self.group_column, self.fractions, self.split_seed),
            *(self.impute, self.min_examples, self.leave_out),
        )
        return {
            "source": "table",
            "version": 2,
            "content": hashlib.sha256(file.read_bytes()).hexdigest(),
            "options": [list(o) if isinstance(o, tuple) else o for o in options],
        }

    def setup(self) -> None:
        super().setup()
        self.shape = self.bank.examples.shape[1:]
        self.reading()  # the table is read where the bank was there already, not in the middle of training

    def reading(self) -> dict[str, Any]:
        if self._features is None:
            self._table()
        assert self._features is not None
        return {"features": self._features.plain(), "target": self.target}

    def build(self) -> Iterator[BankClass]:
        table, where, features = self._table()
        x, rows = features.of(table), _by_label(table[self.target])
        groups = table[self.group_column] if self.group_column else [""] * len(x)
        for split in SPLITS:
            for name, mine in rows.items():
                if where[mine[0]] == split:
                    yield BankClass(split, name, x[mine], groups[mine[0]])

    def _table(self) -> tuple[Table, np.ndarray, Features]:
        """The rows that can be used, the split of each, and the features."""
        labels = [name for name in (self.target, self.group_column) if name]
        others = [name for name in (self.split_column,) if name]
        table, names = usable(read_table(self.path), labels, (), others, self.features, self.impute, self.leave_out)
        rows = _by_label(table[self.target])
        if small := [name for name, mine in rows.items() if len(mine) < self.min_examples]:
            warn(
                f"{len(small):,} classes of {self.path} with fewer than {self.min_examples} rows are left out: {some(small)}"
            )
            left_out = np.zeros(len(table.rows), bool)
            left_out[np.concatenate([rows[name] for name in small])] = True
            table = table.without(left_out)
        where = row_splits(
            table, table[self.target], self.split_column, self.group_column, self.fractions, self.split_seed
        )
        if not (where == "train").any():
            raise DataError(f"{self.path} has no rows for train: mark some in column {self.split_column}.")
        self._features = Features.fit(table, where == "train", names)
        return table, where, self._features


def _by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """Label, in the order of the alphabet -> the rows that have it."""
    rows: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows[label].append(row)
    return rows


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
        check_pixels(x.dtype.name, x.ndim)
        self.x = np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32))
        self.y, self.shape = y.astype(str), x.shape[1:]
        if not np.isfinite(self.x).all() or (y.dtype.kind == "f" and np.isnan(y).any()):
            raise DataError("x and y hold numbers that are not finite: fill them, or take their examples out.")
        table = Table({"y": self.y.tolist(), **({} if split is None else {"split": list(split)})}, "x, y")
        self.where = row_splits(table, table["y"], None if split is None else "split", None, fractions, split_seed)

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> ClassTensors:
        """From any torch Dataset of pairs (input, class): inputs tensors, arrays or Pillow images, all of one size.

        Pillow's are read as those of files are, of any mode and depth: grey if all of them are, else in colour.
        """
        pairs = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
        arrays = [np.asarray(x) for x, _ in pairs]
        if isinstance(pairs[0][0], Image.Image):
            pictures = [eight_bits(x) for x, _ in pairs]
            mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
            arrays = [np.atleast_3d(np.asarray(picture.convert(mode))).transpose(2, 0, 1) for picture in pictures]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise DataError(
                f"the inputs are of {len(shapes)} shapes, such as {some(sorted(shapes)[:2])}: bring them to one."
            )
        x = np.stack(arrays)
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
