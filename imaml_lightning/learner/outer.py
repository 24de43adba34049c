"""The outer optimizer and its scheduler: whether a meta-step can drive them, and what a scheduler waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imaml_lightning.errors import UsageError


def try_step(make: Callable[[Iterable[nn.Parameter]], Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimizer of this kind take one step on a copy of the parameters, with gradients of 0.

    Raises:
        UsageError: it cannot, because it needs a closure (LBFGS) or sparse gradients (SparseAdam), say.
    """
    copies = [nn.Parameter(torch.zeros_like(p, device="cpu")) for p in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = make(iter(copies))
    try:
        optimizer.step()
    except Exception as error:
        raise UsageError(
            f"the outer optimizer {type(optimizer).__name__} cannot take a meta-step, which gives it one dense gradient and "
            f"nothing to evaluate again ({' '.join(str(error).split())}): set --model.optimizer to Adam or SGD"
        ) from error


def monitored(scheduler: Any) -> str | None:
    """The figure that a scheduler waits for before it steps; None for one that steps after every meta-step.

    ``lightning.pytorch.cli.ReduceLROnPlateau`` names it; torch's own waits for the validation's loss, or accuracy where
    more is better.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return None
    return getattr(scheduler, "monitor", "val/loss" if scheduler.mode == "min" else "val/accuracy")
