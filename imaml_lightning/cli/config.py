"""Configuration files and command lines, checked before the parser reads them: for mistakes that it would miss or find too late."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from imaml_lightning.errors import UsageError

#: Options of a learner that take effect at once, also after a resume: nothing of them is in a checkpoint's state.
_TAKE_EFFECT = (
    "model.task_chunk",
    "model.clip_norm",
    "model.adaptation.class_path",
    "model.adaptation.init_args.inner_solver*",
    "model.adaptation.init_args.linear_solver*",
    "model.adaptation.init_args.curvature*",
)
#: Options whose effect is in the weights.
_IN_WEIGHTS = ("model.network*", "model.adaptation.init_args.proximal*")


def peek_options(args: list[str]) -> dict[str, str]:
    """``ckpt_path``, ``name`` and ``output`` of a command line and its configuration files, and ``trust`` of the former.

    Raises:
        UsageError: if a file is not YAML, or names an option twice (the parser would take the last).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    names = ("ckpt_path", "name", "output")
    for name in (*names, "trust"):
        parser.add_argument(f"--{name}")
    try:
        options, _ = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error.argument_name} {error.message}") from error
    found: dict[str, str] = {}
    for path in (path for path in map(Path, options.config) if path.is_file()):
        found |= read_options(path)
    found = {name: found[name] for name in names if found.get(name) is not None}
    return found | {name: value for name, value in vars(options).items() if value is not None and name != "config"}


def read_options(path: Path) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
        UsageError: if it is not YAML, names an option twice, or holds none.
    """
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a configuration ({' '.join(str(error).split())}): correct it there") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no options: write some, as --print_config shows them")
    return content


def refuse_lost_options(args: list[str]) -> None:
    """Refuse options before a ``--config`` whose file sets them as well: what comes later wins, and would do so unsaid.

    Raises:
        UsageError: naming the first such option.
    """
    before: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        option, has_value, value = arg.partition("=")
        if option not in ("--config", "-c"):
            before += [option.rstrip("+")] if option.startswith("--") else []
            continue
        path = Path(value if has_value else following)
        if before and path.is_file():  # nothing is lost to a file that comes first
            keys = [f"--{key}." for key in _dotted(read_options(path))]
            for early in before:
                start = early.replace(".init_args", "") + "."
                if any(key.startswith(start) or start.startswith(key) for key in keys):
                    raise UsageError(
                        f"{early} comes before --config {path}, which sets it as well and would win: put --config first"
                    )


def given_options(args: list[str]) -> set[str]:
    """Names of the options that a command line and its configurations set, such as ``model.network.filters``: as on the
    command line, without the levels of a class and its arguments."""
    given: set[str] = set()
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        if not arg.startswith("-"):
            continue
        option, has_value, value = arg.partition("=")
        value = value if has_value else following
        if option in ("--config", "-c"):
            path = Path(value) if len(value) < 256 else None  # a configuration may stand there itself
            given |= set(_dotted(read_options(path) if path and path.is_file() else yaml.safe_load(value)))
        else:
            name = option.lstrip("-").rstrip("+").replace(".init_args", "").removesuffix(".class_path")
            given |= set(_dotted(yaml.safe_load(value), name) if value.startswith("{") else [name])
    return given


def _dotted(content: Any, prefix: str = "") -> Iterator[str]:
    """The options of a configuration file as on the command line, without the levels of a class and its arguments."""
    if not isinstance(content, dict) or not content:
        yield prefix
        return
    for key, value in content.items():
        inner = key in ("class_path", "init_args")
        yield from _dotted(value, prefix if inner else f"{prefix}.{key}" if prefix else str(key))


class _UniqueKeys(yaml.SafeLoader):
    """YAML without keys that come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} comes twice, the second time in line {line}"
                )
        return super().construct_mapping(node, deep)


def check_restored(theirs: dict[str, Any], ours: dict[str, Any], resumes: bool) -> None:
    """Refuse options that differ from a checkpoint's where its state would silently overrule them.

    Args:
        theirs: the checkpoint's configuration.
        ours: that of this command.
        resumes: training goes on, so the optimizer's and the scheduler's state count as well as the weights.

    Raises:
        UsageError: naming the first such option.
    """
    for key, their, our in _differences(theirs.get("model"), ours.get("model"), "model"):
        in_weights = any(fnmatch(key, pattern) for pattern in _IN_WEIGHTS)
        takes_effect = any(fnmatch(key, pattern) for pattern in _TAKE_EFFECT)
        if in_weights or (resumes and not takes_effect):
            raise UsageError(
                f"--{key} is {our} here and {their} in the checkpoint, whose state would overrule it: "
                "leave it out, or start a new run without --ckpt_path"
            )
    if resumes and theirs.get("seed_everything") != ours.get("seed_everything"):
        raise UsageError("--seed_everything has no effect on a run that goes on: leave it out")


def _differences(theirs: Any, ours: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Key and both values wherever two nested configurations differ; a key of one alone is an option of another version."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() & ours.keys()):
            yield from _differences(theirs[name], ours[name], f"{key}.{name}")
    elif theirs != ours:
        yield key, theirs, ours
