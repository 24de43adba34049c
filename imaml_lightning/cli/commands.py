"""What needs no Trainer: ``--help``, ``predict --support … --query …`` and ``data check``."""

from __future__ import annotations

from collections.abc import Sequence

from imaml_lightning.cli import check_data, predict_files
from imaml_lightning.cli.wording import nearest
from imaml_lightning.errors import UsageError

COMMANDS = ("fit", "validate", "test", "predict")

HELP = """Meta-learning by implicit MAML and its family.

    python -m imaml_lightning COMMAND [options]

  fit          meta-train, then test the best checkpoint; without options a first look at letters, in under three minutes
  validate     figures of a checkpoint on the validation episodes:  --ckpt_path best --name NAME
  test         the same on the test episodes
  predict      adapt a checkpoint to examples of your own:  --ckpt_path best --name NAME --support FOLDER --query FOLDER
  data check   look at data before training on them: counts, duplicates, leaks between splits

    fit --config configs/omniglot_5w1s.yaml    an experiment from a file; options after it change it
    fit --print_config                         every option with its value and what it means
    fit --model.adaptation.help Implicit       the options of one class

Each command lists its options by --help. A run writes runs/NAME/NUMBER/; docs/quickstart.md takes you through one.
"""
DATA_HELP = """Look at data before training on them: counts, duplicates, leaks between splits.

    python -m imaml_lightning data check --data.source ImageFolder --data.source.root photos
    python -m imaml_lightning data check --config FILE

Its options are those of fit that begin with --data; data check --help lists them.
"""
_HELP_OPTIONS = ("--help", "-h")
_OWN_EXAMPLES = ("--support", "--query", *_HELP_OPTIONS)


def run(args: Sequence[str]) -> bool:
    """Run the command if it is one of these; False for those of the :class:`CommandLine`.

    Raises:
        UsageError: there is no such command.
    """
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command in _HELP_OPTIONS:
        print(HELP, end="")
    elif command == "data":
        if rest and rest[0] in _HELP_OPTIONS:
            print(DATA_HELP, end="")
        elif rest and rest[0] == "check":
            check_data.main(rest[1:])
        else:
            raise UsageError(f"data {' '.join(rest[:1])} is no command: give data check")
    elif command == "predict" and any(arg.split("=")[0] in _OWN_EXAMPLES for arg in rest):
        predict_files.main(rest)
    elif command in COMMANDS:
        return False
    else:
        said = f"{command} is no command{nearest(command, COMMANDS)}" if command else "there is no command"
        raise UsageError(f"{said}: give {', '.join(COMMANDS)} or data check, or --help")
    return True
