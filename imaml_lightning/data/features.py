"""Features: which columns of a table are the inputs, and how they are brought to one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imaml_lightning.data.table import Column, numbers, numeric_columns
from imaml_lightning.errors import DataError


@dataclass(frozen=True)
class Features:
    """Columns ``names`` as (x − mean) / scale, where mean and scale are those of the training rows, one a column."""

    names: list[str]
    mean: list[float]
    scale: list[float]

    @classmethod
    def fit(
        cls,
        table: Mapping[str, Column],
        train: np.ndarray,
        path: str,
        names: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> Features:
        """Scale of the rows where ``train [row]`` is true; ``names`` None means every numeric column but ``without``.

        Raises:
            DataError: no such column, or none that is numeric.
        """
        chosen = list(names) if names is not None else numeric_columns(dict(table), without)
        if not chosen:
            raise DataError(f"{path} has no numeric column left for the features: encode words as numbers.")
        x = numbers(dict(table), chosen, path)[train]
        scale = x.std(0)
        return cls(chosen, x.mean(0).tolist(), np.where(scale > 0, scale, 1.0).tolist())

    def of(self, table: Mapping[str, Column], path: str) -> np.ndarray:
        """The features of a table's rows, float32 ``[row, feature]``.

        Raises:
            DataError: a column is missing, or holds what is no number.
        """
        return ((numbers(dict(table), self.names, path) - self.mean) / self.scale).astype(np.float32)

    def plain(self) -> dict[str, Any]:
        """As plain types; ``Features(**plain)`` is the same again."""
        return {"names": self.names, "mean": self.mean, "scale": self.scale}
