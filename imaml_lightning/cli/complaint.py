"""Any error as the one sentence that a person reads."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

from imaml_lightning.cli.wording import plain
from imaml_lightning.errors import DataWarning, UsageError

_as_before = warnings.formatwarning


class OneSentence(ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one that jsonargparse made for a class, and whose error it takes up
            super().error(message, ex)
        raise UsageError(plain(message, self))


def refusal(error: BaseException | None) -> UsageError | None:
    """The refusal among an error and its causes: jsonargparse wraps what a constructor raises."""
    while error is not None:
        if isinstance(error, UsageError):
            return error
        if isinstance(error, MisconfigurationException):
            return UsageError(one_line(error))
        error = error.__cause__ or error.__context__
    return None


def warn_in_one_line() -> None:
    """From now on, what a person should know of their data is said without the place in the code that found it."""
    warnings.formatwarning = _plain


def _plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    return (
        f"warning: {message}\n" if issubclass(category, DataWarning) else _as_before(message, category, *place, **line)
    )


def one_line(error: BaseException) -> str:
    """Its message, without line breaks."""
    return " ".join(str(error).split())
