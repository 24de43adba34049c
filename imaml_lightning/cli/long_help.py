"""``--help all``, or of one part: every option, as the parser knows it."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from imaml_lightning.cli.help import TOPICS
from imaml_lightning.cli.wording import nearest
from imaml_lightning.errors import UsageError


def print_options(parser: ArgumentParser, command: str, topic: str) -> None:
    """The options of one of the parser's commands that begin with ``topic``; all of them for ``all``.

    Raises:
        UsageError: nothing begins so.
    """
    assert parser._subcommands_action is not None
    parser = parser._subcommands_action.choices[command]
    if topic in ("all", ""):
        print(parser.format_help())
        return
    formatter = parser._get_formatter()
    found = False
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if f"{action.dest}.".startswith(f"{topic}.")]
        if actions:
            found = True
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
    if not found:
        raise UsageError(f"there is no help on {topic}{nearest(topic, TOPICS)}: give --help {', '.join(TOPICS)}")
    print(formatter.format_help())
