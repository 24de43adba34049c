"""``--help all``, or of one part: every option, as the parser knows it."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from imaml_lightning.cli.help import TOPICS
from imaml_lightning.cli.wording import nearest
from imaml_lightning.errors import UsageError


def print_options(parser: ArgumentParser, command: str, topic: str) -> None:
    """The options of one of the parser's commands that begin with ``topic``; all of them for ``all``.

    The parser is of no use for anything else afterwards.

    Raises:
        UsageError: nothing begins so.
    """
    assert parser._subcommands_action is not None
    parser = parser._subcommands_action.choices[command]
    parser.usage = f"imaml-lightning {command} [options]"
    if topic != "all":
        for group in parser._action_groups:
            group._group_actions = [a for a in group._group_actions if f"{a.dest}.".startswith(f"{topic}.")]
        parser._action_groups = [group for group in parser._action_groups if group._group_actions]
    if not parser._action_groups:
        raise UsageError(f"there is no help on {topic}{nearest(topic, TOPICS)}: give --help {', '.join(TOPICS)}")
    print(parser.format_help())
