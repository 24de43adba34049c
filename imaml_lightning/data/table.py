"""Reading of tables: CSV with the standard library, Parquet with pyarrow where it is installed."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imaml_lightning.errors import DataError

Column = list[str]


def read_table(path: str | Path) -> dict[str, Column]:
    """Column name -> its cells as text, from ``.csv`` (comma, first line the names) or ``.parquet``.

    Raises:
        DataError: no such file, no rows, a line of another length, or Parquet without pyarrow.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist: name a .csv or .parquet file.")
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.reader(opened))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a table of comma-separated UTF-8 text ({error}): save it as such.") from error
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise DataError(f"{file} has no rows: it needs a line of column names and a line for each example.")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names):
        raise DataError(f"{file} has two columns of one name: rename one of {names}.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise DataError(f"{file}, row {number} has {len(row)} cells and not {len(names)}: mend it.")
    return {
        name: [cell.strip() for cell in column] for name, column in zip(names, zip(*rows[1:], strict=True), strict=True)
    }


def _read_parquet(file: Path) -> dict[str, Column]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{file} needs pyarrow: install it by `pip install pyarrow`, or save the table as CSV."
        ) from error
    try:
        columns = parquet.read_table(file).to_pydict()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet ({error}): write it anew.") from error
    return {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in columns.items()}


def column(table: dict[str, Column], name: str, path: str | Path) -> Column:
    """One column.

    Raises:
        DataError: it is not there.
    """
    if name not in table:
        raise DataError(f"{path} has no column {name}: its columns are {', '.join(table)}.")
    return table[name]


def numbers(table: dict[str, Column], names: Sequence[str], path: str | Path) -> np.ndarray:
    """Columns as float64 ``[row, column]``.

    Raises:
        DataError: naming column and row of a cell that is no finite number.
    """
    array = np.empty((len(next(iter(table.values()))), len(names)))
    for place, name in enumerate(names):
        for row, cell in enumerate(column(table, name, path)):
            array[row, place] = _number(cell)
            if not math.isfinite(array[row, place]):
                raise DataError(
                    f"{path}, row {row + 2}: {cell!r} in column {name} is no number; fill or drop it, encode words as "
                    "numbers, or leave the column out of the features."
                )
    return array


def numeric_columns(table: dict[str, Column], without: Sequence[str]) -> list[str]:
    """The columns whose every cell is a finite number, other than ``without``."""
    others = [name for name in table if name not in without]
    return [name for name in others if all(math.isfinite(_number(cell)) for cell in table[name])]


def _number(cell: str) -> float:
    try:
        return float({"true": "1", "false": "0"}.get(cell.lower(), cell))
    except ValueError:
        return math.nan
