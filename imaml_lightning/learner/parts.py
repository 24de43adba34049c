"""Objects that a learner was given in Python: a checkpoint holds no code, so it holds how they look instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from dataclasses import is_dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from imaml_lightning.errors import UsageError

#: Key under which a checkpoint holds how each of these parts looked.
PARTS_KEY = "imaml_lightning_parts"
#: Arguments of a learner on which its answers depend.
PARTS = ("network", "adaptation", "criterion", "support_criterion")


def looks(part: nn.Module | None) -> str:
    """Its layers and their options, with the arguments of every module that are kept under their own names."""
    lines = [repr(part)]
    for name, module in part.named_modules() if part is not None else ():
        arguments = {key: getattr(module, key, None) for key in inspect.signature(type(module)).parameters}
        plain = {key: value for key, value in arguments.items() if is_dataclass(value) or isinstance(value, _PLAIN)}
        lines.append(f"{name}: {type(module).__module__}.{type(module).__qualname__} {plain}")
    return "\n".join(lines)


_PLAIN = (bool, int, float, str, tuple, list)


def kept_parts(learner: nn.Module, arguments: Container[str]) -> dict[str, str]:
    """How the parts look that are not among the plain ``arguments`` of a checkpoint."""
    return {name: looks(getattr(learner, name)) for name in PARTS if name not in arguments}


def check_parts(
    path: str | Path, saved: Mapping[str, str], given: Container[str], default: Callable[[], nn.Module]
) -> None:
    """Refuse to put defaults in the place of parts that were others.

    Args:
        path: of the checkpoint.
        saved: how its parts looked.
        given: names of the arguments that the caller gives again.
        default: makes a learner of defaults.

    Raises:
        UsageError: naming the parts to give.
    """
    missing = [name for name in saved if name not in given]
    if missing:
        with torch.random.fork_rng(devices=[]):
            usual = default()
        missing = [name for name in missing if looks(getattr(usual, name)) != saved[name]]
    if missing:
        kinds = ", ".join(f"{name} ({saved[name].partition('(')[0]})" for name in missing)
        call = ", ".join(f"{name}=…" for name in missing)
        raise UsageError(f"checkpoint {path} was saved from Python and does not hold its {kinds}: load(path, {call})")


def warn_of_others(path: str | Path, saved: Mapping[str, str], learner: nn.Module) -> None:
    """Warn of every part that looks otherwise than the one that was trained."""
    for name, then in saved.items():
        now = looks(getattr(learner, name))
        pairs = zip_longest(then.splitlines(), now.splitlines(), fillvalue="nothing")
        if other := next(((a.strip(), b.strip()) for a, b in pairs if a != b), None):
            rank_zero_warn(f"the {name} that was trained in {path} had {other[0]}, the one given has {other[1]}")
