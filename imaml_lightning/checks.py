"""Checks of options: each refuses a bad value with a sentence that names it."""

from __future__ import annotations

import math

from imaml_lightning.errors import UsageError


def positive(owner: str, **options: float) -> None:
    """Each option is a positive finite number; ``owner`` is where the user sets them."""
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a positive number, got {value}: set {owner}.{name}")


def at_least(least: int, owner: str, **options: float) -> None:
    """Each option is a finite number not below ``least``."""
    for name, value in options.items():
        if not least <= value < math.inf:
            raise UsageError(f"{name} must be at least {least}, got {value}: set {owner}.{name}")


def fraction(owner: str, **options: float) -> None:
    """Each option is in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name} must be in [0, 1), got {value}: set {owner}.{name}")
