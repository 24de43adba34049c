"""The command line. Read in this order: main (exit statuses), command_line (options, and what fit does), defaults, run (its folder)."""

from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.cli.main import main

__all__ = ["CommandLine", "main"]
