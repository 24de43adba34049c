"""From a table to rows that can be used: which columns are the features, and what becomes of cells that are empty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imaml_lightning.data.class_source import progress
from imaml_lightning.data.notice import say, warn
from imaml_lightning.data.table import NO_LABEL, Table
from imaml_lightning.errors import DataError

_MOSTLY = 4  # so many numbers for each word make a column of numbers with mistakes in it
_FEW = 10  # rows below which counting on is no sign of numbering


def usable(
    table: Table,
    labels: Sequence[str],
    values: Sequence[str] = (),
    others: Sequence[str] = (),
    features: Sequence[str] | None = None,
    impute: bool = False,
    leave_out: bool = False,
) -> tuple[Table, list[str]]:
    """The rows that can be used, and the names of the features; says what is used, and what is not and why.

    Args:
        table: as it was read.
        labels: columns of words in which no cell may be empty: labels, names of tasks, groups.
        values: columns of numbers in which no cell may be empty: targets.
        others: columns that are no features either.
        features: the columns that are; None means every other column of numbers.
        impute: empty cells of features are filled later.
        leave_out: leave rows with empty cells out, rather than refuse them.

    Raises:
        DataError: no such column, cells that are empty or no numbers, or no column of numbers.
    """
    for name in (*labels, *values, *others, *(features or ())):
        table.column(name)
    for name in values:
        _refuse_words(table, name)
    empty = np.zeros(len(table.rows), bool)
    for name in labels:
        empty |= _gaps(table, name, [cell.lower() in NO_LABEL for cell in table[name]], leave_out, impute=None)
    for name in values:
        empty |= _gaps(table, name, np.isnan(table.parsed(name)[0]), leave_out, impute=None)
    names, unused = _chosen(table, [*labels, *values, *others], features)
    for name in names if not impute else ():
        empty |= _gaps(table, name, np.isnan(table.parsed(name)[0]), leave_out, impute)
    if empty.any():
        warn(f"{table.path}: {empty.sum():,} rows with empty cells are left out: {table.places(np.flatnonzero(empty))}")
        table = table.without(empty)
    if not len(table.rows):
        raise DataError(f"{table.path} has no rows left: fill the empty cells, or set --data.source.impute true.")
    commas = _with_commas(table, [*names, *values])
    for name in names:
        if _counts_on(table.parsed(name)[0]):
            warn(
                f"{table.path}: column {name!r} numbers the rows, and is a feature: leave it out by --data.source.features, "
                "or take it out of the table."
            )
    said = f"{table.path}: {len(names):,} features, {', '.join(names)}{', with decimal commas' if commas else ''}"
    say(said + "".join(f"; not used is {name}: {why}" for name, why in unused.items()))
    return table, names


def _with_commas(table: Table, names: Sequence[str]) -> list[str]:
    """The columns of numbers that have decimal commas; refused where others have points."""
    commas = [name for name in names if table.has_commas(name)]
    points = [name for name in names if commas and any("." in cell for cell in table[name])]
    if points:
        raise DataError(
            f"{table.path} has decimal commas in column {commas[0]} and points in {points[0]}, which may divide decimals or "
            "thousands: write all alike."
        )
    return commas


def _chosen(table: Table, taken: Sequence[str], given: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The features; and every other column that is not taken, with the reason."""
    if given is not None:
        for name in given:
            _refuse_words(table, name)
        return list(given), {name: "not named" for name in table if name not in (*taken, *given)}
    names, unused = list[str](), dict[str, str]()
    others = [name for name in table if name not in taken]
    for name in progress(others, f"Columns of {Path(table.path).name}"):
        values, bad = table.parsed(name)
        numbers = len(values) - int(np.isnan(values).sum())
        if numbers and numbers >= _MOSTLY * len(bad):
            _refuse_words(table, name)
            names.append(name)
        else:
            unused[name] = f"words, such as {table[name][bad[0]]!r} in {table.places(bad[:1])}" if bad else "empty"
    if not names:
        why = f": {', '.join(f'{name} has {reason}' for name, reason in unused.items())}" if unused else ""
        raise DataError(f"{table.path} has no numeric column left for the features{why}; encode words as numbers.")
    return names, unused


def _refuse_words(table: Table, name: str) -> None:
    values, bad = table.parsed(name)
    if bad:
        more = f" (as in {len(bad) - 1:,} more rows)" if len(bad) > 1 else ""
        raise DataError(
            f"{table.path}, {table.places(bad[:1])}: {table[name][bad[0]]!r} in column {name} is no number{more}; fill or drop it, "
            "encode words as numbers, or leave the column out of the features."
        )
    if np.isnan(values).all():
        raise DataError(f"{table.path}: column {name} is empty: fill it, or leave it out of the features.")


def _gaps(
    table: Table, name: str, empty: Sequence[bool] | np.ndarray, leave_out: bool, impute: bool | None
) -> np.ndarray:
    """Which cells of a column are empty ``[row]``; refused, unless their rows are left out."""
    gaps = np.asarray(empty)
    if gaps.any() and not leave_out:
        places = np.flatnonzero(gaps)
        cell = table[name][places[0]]
        raise DataError(
            f"{table.path}: column {name} is empty{f' ({cell!r})' if cell else ''} in {table.places(places)}: fill the cells, "
            "leave the rows out by --data.source.leave_out true"
            + ("." if impute is None else ", put the mean there by --data.source.impute true, or leave the column out of "
               "--data.source.features.")
        )  # fmt: skip
    return gaps


def _counts_on(values: np.ndarray) -> bool:
    """Whether a column numbers the rows: whole numbers without a gap, each once, in any order."""
    if len(values) < _FEW or np.isnan(values).any() or (values % 1).any():
        return False
    return bool((np.diff(np.sort(values)) == 1).all())
