"""Tasks and TaskTable: tasks that are given rather than drawn from classes, each with as many rows as it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.data.columns import usable
from imaml_lightning.data.features import Features
from imaml_lightning.data.notice import some, warn
from imaml_lightning.data.split import check_fractions, row_splits
from imaml_lightning.data.table import read_table
from imaml_lightning.episode import IGNORED, Episode, Examples, check_pixels
from imaml_lightning.errors import DataError, UsageError

#: Inputs [row, *feature] and targets, class numbers [row] or values [row, output].
Rows = tuple[np.ndarray, np.ndarray]


class Tasks(EpisodeSource):
    """Given tasks; classes mean the same in all of them, or targets are values.

    An episode takes one task, shuffles its rows, and puts ``shot`` of them (of each class, in classification) into
    the support set and ``query`` of the others into the query set. A smaller task gives what it has, at least one row
    to each set; the rest is padding (see :class:`Examples`). Training draws tasks at random; validation and
    test go through them in turn.

    Args:
        tasks: for each of train, val and test, pairs (inputs ``[row, *feature]``, targets): whole numbers ``[row]``
            from 0 for classes, else values ``[row]`` or ``[row, output]``; tensors or arrays.
        leave_out: leave out tasks that cannot be divided, with a warning that counts them; else they are refused.

    Raises:
        DataError: a split is missing or empty, a task cannot be divided into support and query, or a number is not finite.
    """

    def __init__(self, tasks: Mapping[Split, Sequence[tuple[Any, Any]]], leave_out: bool = False) -> None:
        self.leave_out = leave_out
        self._names: dict[Split, list[str]] = {
            split: [f"{number} of {split}" for number in range(len(pairs))] for split, pairs in tasks.items()
        }
        self._take({split: [_rows(x, y) for x, y in pairs] for split, pairs in tasks.items()})

    def _take(self, tasks: dict[Split, list[Rows]]) -> None:
        self._tasks = {split: self._divisible(split, rows) for split, rows in tasks.items()}
        tasks = self._tasks
        for split in SPLITS:
            if not tasks.get(split):
                raise DataError(f"There are no tasks for {split}: give some, or set --data.source.fractions.")
        _, first = tasks["train"][0]
        self.task = "regression" if first.dtype.kind == "f" else "classification"
        self.shape = tasks["train"][0][0].shape[1:]
        targets = [y for split in SPLITS for _, y in tasks[split]]
        self.classes = 0 if self.task == "regression" else 1 + max(int(y.max()) for y in targets)

    def _divisible(self, split: Split, tasks: list[Rows]) -> list[Rows]:
        """The tasks that can be divided into support and query: with two rows (of one class)."""
        names = self._names[split]
        for name, (x, y) in zip(names, tasks, strict=True):
            # Padding would be taken for what it is not: its targets are NaN, or a negative number.
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise DataError(f"Task {name} has numbers that are not finite: fill them, or take their rows out.")
            if y.dtype.kind != "f" and (y < 0).any():
                raise DataError(f"Task {name} has class {y.min()}: number the classes from 0.")
        large = [max(np.bincount(y) if y.dtype.kind != "f" else [len(y)], default=0) > 1 for _, y in tasks]
        small = [name for name, enough in zip(names, large, strict=True) if not enough]
        if small and not self.leave_out:
            raise DataError(
                f"Task {small[0]} cannot be divided: it needs two rows (of one class); give more, or leave such tasks "
                f"({len(small):,} in {split}) out by --data.source.leave_out true."
            )
        if small:
            warn(f"{len(small):,} tasks of {split} with fewer than two rows (of one class) are left out: {some(small)}")
        self._names[split] = [name for name, enough in zip(names, large, strict=True) if enough]
        return [rows for rows, enough in zip(tasks, large, strict=True) if enough]

    def rows(self, split: Split) -> list[Rows]:
        """The tasks of a split."""
        return self._tasks[split]

    def usual_way(self) -> int:
        return self.classes or super().usual_way()

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        if self.task == "classification" and way != self.classes:
            raise UsageError(
                f"--data.way is {way}, but the tasks have {self.classes} classes: set --data.way {self.classes}."
            )

    def padded(self, shot: int, query: int) -> bool:
        if self.task == "regression":
            return any(len(y) < shot + query for tasks in self._tasks.values() for _, y in tasks)
        targets = [y for tasks in self._tasks.values() for _, y in tasks]
        return any(np.bincount(y, minlength=self.classes).min() < shot + query for y in targets)

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        count = len(self._tasks[split])
        return self._episode(split, [int(rng.integers(count)) for rng in rngs], rngs, shot, query)

    def sample_numbered(
        self, split: Split, numbers: Sequence[int], rngs: Sequence[np.random.Generator], way: int, shot: int, query: int
    ) -> Episode:
        if split == "train":
            return self.sample(split, rngs, way, shot, query)
        return self._episode(split, [n % len(self._tasks[split]) for n in numbers], rngs, shot, query)

    def _episode(
        self, split: Split, chosen: Sequence[int], rngs: Sequence[np.random.Generator], shot: int, query: int
    ) -> Episode:
        pairs = []
        for number, rng in zip(chosen, rngs, strict=True):
            x, y = self._tasks[split][number]
            pairs.append([(x[rows], y[rows]) for rows in _divide(y, rng, shot, query)])
        classes = max(1, self.classes)
        supports, queries = zip(*pairs, strict=True)
        return Episode(_padded(supports, classes * shot), _padded(queries, classes * query))


def _rows(x: Any, y: Any) -> Rows:
    x, y = np.asarray(x), np.asarray(y)
    check_pixels(x.dtype.name, x.ndim)
    y = y.astype(np.int64) if y.dtype.kind in "iub" else y.astype(np.float32).reshape(len(y), -1)
    return (x if x.dtype == np.uint8 else x.astype(np.float32)), y


def _divide(y: np.ndarray, rng: np.random.Generator, shot: int, query: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a support and of a query set."""
    order = rng.permutation(len(y))
    kinds = [order] if y.dtype.kind == "f" else [order[y[order] == label] for label in np.unique(y)]
    cuts = [min(shot, max(1, len(rows) - 1)) for rows in kinds]
    return (
        np.concatenate([rows[:cut] for rows, cut in zip(kinds, cuts, strict=True)]),
        np.concatenate([rows[cut : cut + query] for rows, cut in zip(kinds, cuts, strict=True)]),
    )


def _padded(sets: Sequence[Rows], size: int) -> Examples:
    """Sets of unequal size as one batch of ``size`` examples a task."""
    x0, y0 = sets[0]
    x = np.zeros((len(sets), size, *x0.shape[1:]), x0.dtype)
    y = np.full((len(sets), size, *y0.shape[1:]), np.nan if y0.dtype.kind == "f" else IGNORED, y0.dtype)
    for task, (inputs, targets) in enumerate(sets):
        x[task, : len(inputs)], y[task, : len(targets)] = inputs, targets
    return Examples(torch.from_numpy(x), torch.from_numpy(y))


class TaskTable(Tasks):
    """A table of tasks: each row is an example of the task that its ``task_column`` names.

    Features, and targets in regression, are brought to mean 0 and deviation 1 by those of the training rows; so losses
    are in units of the target's variance. ``predict`` gives values in the units of the table.

    Args:
        path: a .csv file (or .parquet, with pyarrow).
        target: the column to predict.
        task_column: whose cells name the task of a row.
        kind: ``classification`` (the target's cells are labels, which mean the same in all tasks) or ``regression``.
        features: the columns to predict from; None means every numeric one but the other columns named here.
        split_column: whose cells are train, val or test; None draws a split by ``fractions``.
        group_column: tasks of one group (site, patient) stay together in the drawn split.
        fractions: shares of the tasks for train, val and test in the drawn split.
        split_seed: of the drawn split.
        impute: put the mean of the training rows into empty cells of features, and add for each column that has some a
            feature that is 1 there and else 0; without it they are refused.
        leave_out: leave out rows with empty cells, and tasks that cannot be divided, with warnings that count them; else they
            are refused.
    """

    def __init__(
        self,
        path: str,
        target: str,
        task_column: str = "task",
        kind: Literal["classification", "regression"] = "classification",
        features: Sequence[str] | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        impute: bool = False,
        leave_out: bool = False,
    ) -> None:
        if kind not in ("classification", "regression"):
            raise UsageError(f"--data.source.kind is 'classification' or 'regression', but is {kind!r}.")
        check_fractions(fractions, split_seed)
        self.path, self.target, self.task_column, self.task = path, target, task_column, kind
        self.features, self.split_column, self.group_column = features, split_column, group_column
        self.fractions, self.split_seed = tuple(fractions), split_seed
        self.impute, self.leave_out = impute, leave_out
        self._reading: dict[str, Any] | None = None

    def reading(self) -> dict[str, Any]:
        assert self._reading is not None, "set up first"
        return self._reading

    def setup(self) -> None:
        if self._reading is not None:
            return
        words, values = ([self.target], []) if self.task == "classification" else ([], [self.target])
        labels = [name for name in (*words, self.task_column, self.group_column) if name]
        others = [name for name in (self.split_column,) if name]
        table, names = usable(read_table(self.path), labels, values, others, self.features, self.impute, self.leave_out)
        tasks = table[self.task_column]
        where = row_splits(table, tasks, self.split_column, self.group_column, self.fractions, self.split_seed)
        train = where == "train"
        if not train.any():
            raise DataError(f"{self.path} has no rows for train: mark some in column {self.split_column}.")
        features = Features.fit(table, train, names)
        x = features.of(table)
        reading: dict[str, Any] = {"features": features.plain(), "target": self.target}
        if self.task == "classification":
            reading["labels"] = sorted(set(table[self.target]))
            number = {label: i for i, label in enumerate(reading["labels"])}
            y = np.array([number[label] for label in table[self.target]])
        else:
            scaler = Features.fit(table, train, [self.target])
            reading["scaler"] = scaler.plain()
            y = scaler.of(table)
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(tasks):
            rows.setdefault(name, []).append(row)
        self._names = {s: sorted(name for name, mine in rows.items() if where[mine[0]] == s) for s in SPLITS}
        self._take({s: [(x[rows[name]], y[rows[name]]) for name in self._names[s]] for s in SPLITS})
        self._reading = reading
