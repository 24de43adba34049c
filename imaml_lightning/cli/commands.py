"""What needs no Trainer: ``--help``, ``predict --support … --query …`` and ``data check``."""

from __future__ import annotations

from collections.abc import Sequence

from imaml_lightning.cli import predict_files
from imaml_lightning.data import check

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
_HELP_OPTIONS = ("--help", "-h")


def run(args: Sequence[str]) -> bool:
    """Run the command if it is one of these; False for any other."""
    own_examples = ("--support", "--query", *_HELP_OPTIONS)
    if args and args[0] in _HELP_OPTIONS:
        print(HELP, end="")
    elif list(args[:2]) == ["data", "check"]:
        check.main(args[2:])
    elif list(args[:1]) == ["predict"] and any(arg.split("=")[0] in own_examples for arg in args):
        predict_files.main(args[1:])
    else:
        return False
    return True
