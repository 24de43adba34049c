"""One function of many tasks: all at once by vmap, or one after the other where torch cannot."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.randomness import Generators

Function = Callable[..., Tensor]

#: Of functions that have been evaluated on several tasks, whether vmap can do them.
_batched: weakref.WeakKeyDictionary[Function, bool] = weakref.WeakKeyDictionary()


def per_task(function: Function, *arguments: Tensor) -> Tensor:
    """``function`` of each task's row of the arguments.

    By vmap; for a single task, and for what vmap does not do (LSTM, checkpointed parts, values read on the host), by a
    loop over tasks, of which one warning tells.
    """
    if len(arguments[0]) == 1 or not _batched.get(function, True):
        return one_by_one(function, *arguments)
    generators = None if function in _batched else Generators(arguments[0].device)
    try:
        together = torch.func.vmap(function, randomness="different")(*arguments)
        _batched[function] = True
        return together
    except (torch.OutOfMemoryError, UsageError):
        raise
    except Exception as error:
        reason = error
    if generators is not None:  # what follows draws the same with and without the attempt
        generators.restore()
    alone = one_by_one(function, *arguments)  # if this fails as well, its error is the clearer one
    never_batched(function)
    why = " ".join(str(reason).split())[:150]
    warnings.warn(f"{_name(function)} is evaluated one task at a time: torch cannot batch it ({why})", stacklevel=2)
    return alone


def one_by_one(function: Function, *arguments: Tensor) -> Tensor:
    """The same by a loop over tasks."""
    return torch.stack([function(*(a[task] for a in arguments)) for task in range(len(arguments[0]))])


def never_batched(function: Function) -> None:
    """From now on ``per_task`` takes one task after the other."""
    _batched[function] = False


def _name(function: Any) -> str:
    return "the network" if isfunction(function) else type(getattr(function, "network", function)).__name__
