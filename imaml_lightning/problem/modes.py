"""The mode in which a network answers, whatever the caller is in the middle of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def answering(*modules: nn.Module) -> Iterator[None]:
    """Within it ``modules`` are in evaluation mode (no dropout) and autograd works, which ``torch.inference_mode`` forbids.

    After it every module is in the mode that it had, also where these differ.
    """
    before = [(each, each.training) for module in modules for each in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        for each, training in before:
            each.training = training
