"""Features: columns of a table as inputs, brought to one scale, with the mean in place of empty cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imaml_lightning.data.notice import say, some
from imaml_lightning.data.table import Table
from imaml_lightning.errors import DataError


@dataclass(frozen=True)
class Features:
    """Columns ``names`` as (x − mean) / scale, where mean and scale are those of the training rows, one a column.

    An empty cell of one of the ``indicators`` counts as the mean, and a further column, one for each of them, is 1 there
    and 0 elsewhere.
    """

    names: list[str]
    mean: list[float]
    scale: list[float]
    indicators: list[str] = field(default_factory=list)

    @classmethod
    def fit(cls, table: Table, train: np.ndarray, names: Sequence[str]) -> Features:
        """Scale of the rows where ``train [row]`` is true; the indicators are the columns with an empty cell in any row.

        Raises:
            DataError: a column has no number in the training rows.
        """
        columns = [table.parsed(name)[0] for name in names]
        x = np.stack(columns, 1)[train]
        if nothing := [name for name, some_number in zip(names, (~np.isnan(x)).any(0), strict=True) if not some_number]:
            raise DataError(
                f"{table.path}: column {nothing[0]} is empty in all rows for train: leave it out of the features."
            )
        mean, scale = np.nanmean(x, 0), np.nanstd(x, 0)
        if same := [name for name, width in zip(names, scale, strict=True) if not width]:
            say(f"{table.path}: the same in all rows for train, so of no use, is {some(same)}")
        indicators = [name for name, column in zip(names, columns, strict=True) if np.isnan(column).any()]
        return cls(list(names), mean.tolist(), np.where(scale > 0, scale, 1.0).tolist(), indicators)

    @property
    def count(self) -> int:
        """How many numbers an input has: features and indicators."""
        return len(self.names) + len(self.indicators)

    def of(self, table: Table) -> np.ndarray:
        """The features of a table's rows, float32 ``[row, feature]``, indicators last.

        Raises:
            DataError: a column is missing, holds what is no number, or has an empty cell and no indicator.
        """
        for name in self.names:
            values, bad = table.parsed(name)
            strange = bad or (np.flatnonzero(np.isnan(values)).tolist() if name not in self.indicators else [])
            if strange:
                raise DataError(
                    f"{table.path}, {table.places(strange)}: {table[name][strange[0]]!r} in column {name} is no number; fill it."
                )
        x = np.stack([table.parsed(name)[0] for name in self.names], 1)
        gaps = [np.isnan(x[:, self.names.index(name)]) for name in self.indicators]
        scaled = np.nan_to_num((x - self.mean) / self.scale, nan=0.0)
        return np.concatenate([scaled, *(gap[:, None] for gap in gaps)], 1).astype(np.float32)

    def plain(self) -> dict[str, Any]:
        """As plain types; ``Features(**plain)`` is the same again."""
        return {"names": self.names, "mean": self.mean, "scale": self.scale, "indicators": self.indicators}
