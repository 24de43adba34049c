"""What goes wrong in a way that the user can mend, each with the exit status of the command line.

0 done, 1 a fault while running, 2 bad usage, configuration or checkpoint, 3 data, 4 diverged, 130 interrupted (Ctrl-C),
143 terminated. The checks at the end refuse a bad option with a sentence that names it.
"""

from __future__ import annotations

import math


class UsageError(Exception):
    """A bad option, file or combination: one sentence that names the thing and the remedy.

    The command line prints the sentence without a traceback.
    """

    exit_status = 2


class DataError(UsageError):
    """Data that is missing, damaged or cannot be written."""

    exit_status = 3


class DivergedError(UsageError):
    """Numbers that are no longer finite: training cannot go on."""

    exit_status = 4


class Stopped(SystemExit):
    """SIGINT or SIGTERM ended the run; its number is ``signal``, the exit status 128 more.

    Not an Exception, so that nothing takes it for an error and goes on.
    """

    def __init__(self, signal: int, message: str) -> None:
        self.signal, self.message, self.exit_status = signal, message, 128 + signal
        super().__init__(self.exit_status)

    def __str__(self) -> str:
        return self.message


class DataWarning(UserWarning):
    """Data that may not be what they are taken for: one sentence that names the thing and the remedy."""


def check_positive(owner: str, **options: float) -> None:
    """Each option is a positive finite number; ``owner`` is where the user sets them."""
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a positive number, got {value}: set {owner}.{name}")


def check_at_least(least: int, owner: str, **options: float) -> None:
    """Each option is a finite number not below ``least``."""
    for name, value in options.items():
        if not least <= value < math.inf:
            raise UsageError(f"{name} must be at least {least}, got {value}: set {owner}.{name}")


def check_fraction(owner: str, **options: float) -> None:
    """Each option is in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name} must be in [0, 1), got {value}: set {owner}.{name}")
