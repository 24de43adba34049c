"""The commands that need no Trainer: ``predict --support … --query …`` and ``data check``."""

from __future__ import annotations

from collections.abc import Sequence

from imaml_lightning.cli import predict_files
from imaml_lightning.data import check


def run(args: Sequence[str]) -> bool:
    """Run the command if it is one of these; False for any other."""
    if list(args[:2]) == ["data", "check"]:
        check.main(args[2:])
    elif list(args[:1]) == ["predict"] and any(arg.split("=")[0] in ("--support", "--query") for arg in args):
        predict_files.main(args[1:])
    else:
        return False
    return True
