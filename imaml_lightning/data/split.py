"""Drawing a split: which classes or tasks are for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imaml_lightning.data.base import SPLITS, Split
from imaml_lightning.data.table import Column, Table
from imaml_lightning.errors import DataError, UsageError


def check_fractions(fractions: Sequence[float], split_seed: int) -> None:
    """Refuse shares that do not make a whole."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"--data.source.fractions must be three positive shares (train, val, test) with sum 1, got {fractions}."
        )
    if split_seed < 0:
        raise UsageError(f"--data.source.split_seed must be at least 0, but is {split_seed}.")


def draw_split(groups: Sequence[str], fractions: Sequence[float], split_seed: int) -> dict[str, Split]:
    """Group -> split; the members of a group (one entry of ``groups`` each) stay together, so that nothing leaks.

    Groups, sorted by name and then shuffled, go in turn to the split that has least of its share of the members yet.
    The result depends on the set of groups and on the seed alone, not on the order.
    """
    names, sizes = np.unique(np.array(groups), return_counts=True)
    share = np.array(fractions) * len(groups)
    got = np.zeros(len(SPLITS))
    found: dict[str, Split] = {}
    for number in np.random.default_rng(split_seed).permutation(len(names)):
        split = int(np.argmax(1 - got / share))
        got[split] += sizes[number]
        found[str(names[number])] = SPLITS[split]
    return found


def row_splits(
    table: Table,
    units: Column,
    split_column: str | None,
    group_column: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> np.ndarray:
    """The split of each row ``[row]``: as ``split_column`` says, or drawn such that units and groups stay together.

    Raises:
        DataError: a cell that names no split, or a unit (a task, a class) in two splits or two groups.
    """
    keeper = split_column or group_column
    owner: dict[str, str] = {}
    for row, unit, cell in zip(table.rows, units, table.column(keeper) if keeper else units, strict=True):
        if keeper:
            if owner.get(unit, cell) != cell:
                raise DataError(
                    f"{table.path}, row {row}: {unit} is in {cell} and in {owner[unit]} of column {keeper}; choose one."
                )
            if split_column and cell not in SPLITS:
                raise DataError(f"{table.path}, row {row}: {cell!r} in column {keeper} is none of train, val and test.")
        owner[unit] = cell
    if split_column:
        return np.array([owner[unit] for unit in units])
    drawn = draw_split(list(owner.values()), fractions, split_seed)
    return np.array([drawn[owner[unit]] for unit in units])
