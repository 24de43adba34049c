"""A command that is one function, whose arguments are its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from imaml_lightning.cli.arguments import class_first, import_only
from imaml_lightning.cli.complaint import OneSentence
from imaml_lightning.cli.config import peek_options


def run_function(command: str, function: Callable[..., Any], about: str, args: Sequence[str]) -> None:
    """Call ``function`` with the options that ``args``, the words after ``command``, name."""
    parser = OneSentence(prog=f"imaml-lightning {command}", description=about)
    parser.add_function_arguments(function)
    parser.add_argument("--traceback", action="store_true", help="Show where an error comes from.")
    given = class_first(args)
    import_only(peek_options([command, *given]).get("trust"))
    options = vars(parser.instantiate(parser.parse_args(given)))
    del options["traceback"]  # of whoever prints the error
    function(**options)
