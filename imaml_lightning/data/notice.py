"""What a person should know of their data, said once: not an error, and not to be passed over in silence."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_only

from imaml_lightning.errors import DataWarning

_NAMED = 5  # of many things, how many are named


@rank_zero_only
def warn(sentence: str) -> None:
    """A ``DataWarning``, of the first process alone."""
    warnings.warn(sentence, DataWarning, stacklevel=3)


@rank_zero_only
def say(sentence: str) -> None:
    """A line on standard error, of the first process alone."""
    print(sentence, file=sys.stderr, flush=True)


def some(names: Sequence[object]) -> str:
    """``a, b and c``; of many the first few, and how many more there are."""
    shown = [str(name) for name in names]
    if len(shown) > _NAMED + 1:
        shown = [*shown[:_NAMED], f"{len(shown) - _NAMED:,} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
