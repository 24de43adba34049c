"""Reading of tables: CSV with the standard library, Parquet with pyarrow where it is installed."""

from __future__ import annotations

import csv
import gc
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from rich import progress
from rich.console import Console

from imaml_lightning.data.notice import some
from imaml_lightning.errors import DataError

Column = list[str]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
#: Cells, in small letters, that stand for nothing: where a label is wanted, and where a number is.
NO_LABEL = {"", "na", "n/a", "#n/a", "nan", "<na>", "null"}
NO_NUMBER = NO_LABEL | {"none", "-", "?", "."}
_SEPARATORS = "\t;|,"  # commas last: they may be decimal commas, or in the names of columns
_TRUTH = {"true": 1.0, "false": 0.0}
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?|[+-]?\d+(e[+-]?\d+)?", re.IGNORECASE)


class Table(dict[str, Column]):
    """Column name -> its cells as text.

    Attributes:
        path: of the file, for messages.
        rows: the row of the file, as a spreadsheet counts, from which each came; the names are in row 1.
        commas: whether a comma may be a decimal comma: where it does not separate cells.
    """

    def __init__(self, columns: dict[str, Column], path: str | Path, commas: bool = False) -> None:
        super().__init__(columns)
        self.path, self.commas = path, commas
        self.rows: np.ndarray = np.arange(2, 2 + len(next(iter(self.values()), [])))
        self._parsed: dict[str, tuple[np.ndarray, list[int]]] = {}

    def column(self, name: str) -> Column:
        """One column.

        Raises:
            DataError: it is not there.
        """
        if name not in self:
            raise DataError(f"{self.path} has no column {name}: its columns are {', '.join(self)}.")
        return self[name]

    def parsed(self, name: str) -> tuple[np.ndarray, list[int]]:
        """A column as float64 ``[row]``, not a number where there is none, and the places of cells that are something else:
        words, or infinite. Decimal commas are understood where a comma can be one and the whole column has them."""
        if name not in self._parsed:
            cells = self.column(name)
            values, bad = _numbers(cells)
            if bad and self.commas and all(_COMMA_NUMBER.fullmatch(cell) or _missing(cell) for cell in cells):
                values, bad = _numbers([cell.replace(",", ".") for cell in cells])
            self._parsed[name] = values, bad
        return self._parsed[name]

    def has_commas(self, name: str) -> bool:
        """Whether a column of numbers has decimal commas."""
        return not self.parsed(name)[1] and any("," in cell for cell in self[name])

    def places(self, where: Sequence[int] | np.ndarray) -> str:
        """``row 2`` or ``rows 2, 5 and 7``, of the file."""
        return f"row{'s' if len(where) > 1 else ''} {some(self.rows[np.asarray(where)].tolist())}"

    def without(self, left_out: np.ndarray) -> Table:
        """The rows where ``left_out [row]`` is false."""
        kept = np.flatnonzero(~left_out)
        table = Table({name: [cells[i] for i in kept] for name, cells in self.items()}, self.path, self.commas)
        table.rows = self.rows[kept]
        return table


def read_table(path: str | Path) -> Table:
    """A table from text (separated by commas, semicolons, tabs or |; the first line the names) or ``.parquet``.

    Raises:
        DataError: no such file, no rows, a line of another length, or Parquet without pyarrow.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist: name a .csv or .parquet file.")
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    with file.open("rb") as opened:
        encoding = "utf-16" if opened.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        with file.open(newline="", encoding=encoding) as head:
            separator = _separator(head)
        console = Console(stderr=True)
        with progress.open(
            file, "r", encoding=encoding, newline="", description=f"Reading {file.name}", console=console,
            transient=True, disable=not console.is_terminal,
        ) as text:  # fmt: skip
            rows = _all(csv.reader(text, delimiter=separator))
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{file} is not a table of separated UTF-8 text ({error}): save it as such.") from error
    filled = [number for number, row in enumerate(rows) if row]
    if len(filled) < 2:
        raise DataError(f"{file} has no rows: it needs a line of column names and a line for each example.")
    names = [name.strip() for name in rows[filled[0]]]
    if len(set(names)) < len(names):
        raise DataError(f"{file} has two columns of one name: rename one of {names}.")
    for number in filled[1:]:
        if len(rows[number]) != len(names):
            raise DataError(f"{file}, row {number + 1} has {len(rows[number])} cells and not {len(names)}: mend it.")
    columns = zip(*(rows[number] for number in filled[1:]), strict=True)
    table = Table(
        {name: [cell.strip() for cell in column] for name, column in zip(names, columns, strict=True)},
        file,
        commas=separator != ",",
    )
    table.rows = np.array(filled[1:]) + 1
    return table


def _all(rows: Iterator[list[str]]) -> list[list[str]]:
    """A list of them, made without Python's search for cycles, which would double the time of millions of rows."""
    searched = gc.isenabled()
    gc.disable()
    try:
        return list(rows)
    finally:
        if searched:
            gc.enable()


def _separator(text: TextIO) -> str:
    """The separator that divides the first lines into as many cells each, and more than one; else the comma."""
    lines = [line for line, _ in zip(text, range(20), strict=False)]
    for separator in _SEPARATORS:
        counts = {len(row) for row in csv.reader(lines[:-1] or lines, delimiter=separator) if row}
        if len(counts) == 1 and counts != {1}:
            return separator
    return ","


def _read_parquet(file: Path) -> Table:
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
    return Table({name: ["" if cell is None else str(cell) for cell in cells] for name, cells in columns.items()}, file)


def _numbers(cells: Column) -> tuple[np.ndarray, list[int]]:
    try:
        values = np.array(list(map(float, cells)))  # by far the most columns
    except ValueError:
        values = np.array([_number(cell) for cell in cells])
    strange = np.flatnonzero(~np.isfinite(values))
    values[strange] = np.nan
    return values, [place for place in strange.tolist() if not _missing(cells[place])]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return _TRUTH.get(cell.lower(), math.nan)


def _missing(cell: str) -> bool:
    return cell.lower() in NO_NUMBER
