"""Arithmetic that mixed precision leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Within it every layer computes in the type of its weights, whatever autocast would choose.

    Certificates are measured so, and linear systems solved: a product of bf16 is right to three digits, and a residual that
    such products measure is not that of the system.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@torch.no_grad()
def exactly(module: nn.Module, start: Tensor, convert: Callable[[], object]) -> None:
    """Convert ``module`` in place; its ``raw`` gets the digits of ``start`` (float64) that its new type has.

    Rounded to float32 first, λ = 2 would be 2.00000005 in a float64 run. What training or a checkpoint has changed stays.
    """
    raw = module.get_parameter("raw")
    untouched = not raw.is_meta and torch.equal(raw, start.to(raw))
    convert()
    raw = module.get_parameter("raw")
    if untouched and not raw.is_meta:
        raw.copy_(start)
