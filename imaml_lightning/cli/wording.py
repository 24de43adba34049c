"""What jsonargparse refuses, in one sentence of ours: the option, what is wrong with it, and the remedy."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

from jsonargparse import ArgumentParser
from jsonargparse._util import import_object

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}


def plain(message: str, parser: ArgumentParser) -> str:
    """``message`` of ``parser``, reworded where its kind is known."""
    message = " ".join(message.split())
    option = "--" + ".".join(re.findall(r'Parser key "([^"]*)"', message))
    for pattern, words in (
        (r"unrecognized arguments: (\S+)", lambda found: _unknown(found[1], parser)),
        (r"Option '([^']+)' is not accepted", lambda found: _not_of_class(option, found[1], message)),
        (r"Importing '([^']+)' is not allowed", lambda found: _not_imported(option, found[1])),
        (r"Expected a dot import path string: (\S+)", lambda found: _no_class(option, found[1])),
        (r"arguments are required: (.+?)(?: - Expected|$)", lambda found: _missing(option, found[1], message)),
        (r"Expected a (?:<class '(?!NoneType)|typing\.Literal)", lambda _: _wrong_type(option, message)),
        (r"Expected a path but (\S+) either not accessible", lambda found: _no_class(option, found[1])),
    ):
        if found := re.search(pattern, message):
            return words(found)
    return message


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean …?`` where a name is near enough to be meant, else nothing."""
    found = get_close_matches(name, sorted(set(names)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _unknown(option: str, parser: ArgumentParser) -> str:
    if not option.startswith("-"):
        return f"{option} is not an option: write --name value"
    option = option.partition("=")[0]
    commands = parser._subcommands_action.choices.values() if parser._subcommands_action else ()
    known = {name for one in (parser, *commands) for name in one._option_string_actions}
    return f"there is no option {option}{nearest(option, known) or ': see --help'}"


def _class(message: str) -> str:
    return re.findall(r"class_path[= ]'([^']+)'", message)[-1]


def _not_of_class(option: str, name: str, message: str) -> str:
    path = _class(message)
    known = [p for p in inspect.signature(import_object(path)).parameters if p not in ("args", "kwargs", "params")]
    owner = path.rpartition(".")[2]
    has = f"it has {', '.join(known)}" if known else "it has none"
    return f"{owner} has no option {name} ({option}.{name}): {has}, or choose another class by {option}" + nearest(
        name, known
    )


def _not_imported(option: str, path: str) -> str:
    return (
        f"{option} names {path}, which is not imported: add --trust {path.partition('.')[0]} if you trust that package"
    )


def _no_class(option: str, name: str) -> str:
    known = {n for room, module in list(sys.modules.items()) if _offers(room) for n in _offered(module)}
    return f"{option} names no class that there is, {name}{nearest(name, known) or ': see --help'}"


def _offers(room: str) -> bool:
    return room.startswith("imaml_lightning.") or room in ("torch.optim", "torch.optim.lr_scheduler", "torch.nn")


def _offered(module: object) -> list[str]:
    return [name for name in getattr(module, "__all__", dir(module)) if name[:1].isupper()]


def _missing(option: str, names: str, message: str) -> str:
    owner = _class(message).rpartition(".")[2] if "class_path" in message else "the command"
    prefix = "--" if option == "--" else f"{option}."
    given = " and ".join(f"{prefix}{name}" for name in names.split(", "))
    return f"{owner} needs more: give {given}"


def _wrong_type(option: str, message: str) -> str:
    kinds = dict.fromkeys(re.findall(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[(.*?)\])", message))
    words = [
        f"one of {literal.replace(chr(39), '')}" if literal else _TYPES.get(name, name)
        for name, literal in kinds
        if name != "NoneType"
    ]
    nested = re.search(r"val='?([^)']*)", message)
    given = nested or re.search(r"(?:Got value|Given value): (.*?)(?: - Expected|$)", message)
    return f"{option} cannot be {given[1] if given else 'this'}: give {' or '.join(words)}"
