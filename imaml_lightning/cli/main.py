"""From the command line's words to an exit status."""

from __future__ import annotations

import sys

from imaml_lightning import __version__
from imaml_lightning.cli.help import short_help


def main(args: list[str] | None = None) -> None:
    """Run the command line; the last line on standard error says what went wrong, the exit status of what kind it is.

    See ``errors`` for the statuses. What the user can mend is said without a traceback, unless ``--traceback``.
    """
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["--version"]:
        print(f"imaml_lightning {__version__}")
    elif (text := short_help(given)) is not None:
        print(text, end="")
    else:
        from imaml_lightning.cli.commands import run  # torch and Lightning take seconds

        run(args)
