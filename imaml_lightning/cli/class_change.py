"""When a configuration exchanges one class for another, the numbers meant for the first do not go to the second."""

from __future__ import annotations

from typing import Any

from jsonargparse import _typehints

_discard = _typehints.discard_init_args_on_class_path_change


def forget_options_of_the_old_class() -> None:
    """Let a newly named class begin with its own defaults, in the command line and in YAML.

    jsonargparse hands on every option that the new class happens to have as well, defaults included, so that
    ``inner_solver: Adam`` would step with gradient descent's ``lr`` (its issue 460). Here only options that are
    classes themselves go over: an adaptation that replaces another keeps the inner solver that was chosen.
    """
    _typehints.discard_init_args_on_class_path_change = _discard_numbers


def _discard_numbers(parser_or_action: Any, before: Any, now: Any) -> None:
    before = _typehints.subclass_spec_as_namespace(before)
    if before and "init_args" in before and before.class_path != now["class_path"]:
        options = before.init_args
        for name, value in list(vars(options).items()):
            if not _typehints.is_subclass_spec(value):
                options.pop(name)
    _discard(parser_or_action, before, now)
