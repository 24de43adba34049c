"""Setting: how large an episode is."""

from __future__ import annotations

import re
from typing import NamedTuple

from imaml_lightning.errors import UsageError, check_at_least


class Setting(NamedTuple):
    """``way`` classes with ``query`` query examples each, and of support examples a number out of ``shots``."""

    way: int
    shots: range
    query: int

    @property
    def shot(self) -> int:
        """The shot, or the largest of several."""
        return self.shots[-1]

    @property
    def most(self) -> tuple[int, int, int]:
        """Way, shot and query of the largest such episode."""
        return self.way, self.shot, self.query


def shots(option: str, value: int | str) -> range:
    """Numbers of support examples: one for ``5``, several for ``1..9``, both ends among them.

    Raises:
        UsageError: naming ``option``, for anything else.
    """
    found = re.fullmatch(r"(-?\d+)(?:\.\.(\d+))?", str(value))
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    check_at_least(1, "--data", **{option: least})
    if most < least:
        raise UsageError(f"--data.{option} is a number, or a range such as 1..9, but is {value!r}.")
    return range(least, most + 1)


def named_setting(name: str, way: int, query: int) -> Setting:
    """``20w1s`` is 20 ways and 1 shot, ``10s`` is ``way`` ways and 10 shots.

    Raises:
        UsageError: for a name of another form.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)w)?([1-9]\d*)s", name)
    if not found or found[1] == "1":
        raise UsageError(f"--data.eval_settings has {name!r}: write 20w1s for 20 ways and 1 shot, or 10s for 10 shots.")
    return Setting(int(found[1] or way), range(int(found[2]), int(found[2]) + 1), query)
