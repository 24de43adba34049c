"""Which command is meant, and what becomes of its errors."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import wandb

from imaml_lightning.cli import check_data, export, predict_files
from imaml_lightning.cli.class_change import forget_options_of_the_old_class
from imaml_lightning.cli.class_names import find_our_classes
from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.cli.complaint import one_line, refusal, warn_in_one_line
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.cli.help import COMMANDS
from imaml_lightning.cli.wording import nearest
from imaml_lightning.errors import Stopped, UsageError
from imaml_lightning.run.signals import Signals


def run(args: list[str] | None) -> None:
    """See ``main``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own call of torch's pytree
    warnings.filterwarnings(
        "ignore", message=".*torch.jit.script. is deprecated"
    )  # torch's own forward mode, from 2.14 on
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # ours: a run's folder
    warn_in_one_line()
    forget_options_of_the_old_class()
    find_our_classes()  # for data check; the CommandLine does so itself
    keep_freed_memory()
    # jsonargparse writes the comments only if asked to.
    sys.argv[1:] = ["--print_config=comments" if arg == "--print_config" else arg for arg in sys.argv[1:]]
    show = "--traceback" in (sys.argv if args is None else args)
    with Signals() as signals:
        error: BaseException
        try:
            if not _without_trainer(sys.argv[1:] if args is None else args):
                CommandLine(signals, args)
            return
        except Stopped as stopped:
            error, status = stopped, stopped.exit_status
        except Exception as fault:
            error = refusal(fault) or fault
            status = error.exit_status if isinstance(error, UsageError) else 1
            if show or status == 1:
                traceback.print_exception(fault)
        signals.leave()
        if wandb.run is not None:
            wandb.finish(exit_code=status)
        wandb.teardown()  # its service would be found by processes that this one starts
        signals.end_ranks()
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if first or not isinstance(error, Stopped):
        said = (
            one_line(error)
            if isinstance(error, (UsageError, Stopped))
            else f"{type(error).__name__}: {one_line(error)}"
        )
        print(f"error: {said}", file=sys.stderr, flush=True)
    # A rank that was asked to stop has done well: Lightning kills the first rank where another one fails.
    sys.exit(0 if isinstance(error, Stopped) and not first else status)


def _without_trainer(args: Sequence[str]) -> bool:
    """Run the command if it needs no Trainer; False for those of the :class:`CommandLine`.

    Raises:
        UsageError: there is no such command.
    """
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command == "data":
        if not rest or rest[0] != "check":
            raise UsageError(f"data {' '.join(rest[:1])} is no command: give data check")
        check_data.main(rest[1:])
    elif command == "predict" and any(arg.split("=")[0] in ("--support", "--query") for arg in rest):
        predict_files.main(rest)
    elif command == "export":
        export.main(rest)
    elif command in COMMANDS:
        return False
    else:
        said = f"{command} is no command{nearest(command, [*COMMANDS, 'export'])}" if command else "there is no command"
        raise UsageError(f"{said}: give {', '.join(COMMANDS)}, export or data check, or --help")
    return True
