"""The command line. Read in this order: main (exit statuses), help, command_line (options, and what fit does), defaults."""

from imaml_lightning.cli.main import main

__all__ = ["main"]
