"""Parameters that the gradient of a meta-step does not reach: they stay as they are, on one rank and on many alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


class _Exchanged(torch.autograd.Function):
    """The loss as a function of all parameters, with no gradient to any of them besides its own.

    DistributedDataParallel exchanges gradients once autograd has been at every parameter. One that no path leads to (λ
    in first-order adaptation, a layer that is not used) would keep it waiting: the first step would be taken with
    gradients that were not exchanged, and the second would fail.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g, *[None] * ctx.count


def exchanged(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``loss``, whose backward pass makes ranks exchange gradients whichever parameters it reaches."""
    return _Exchanged.apply(loss, *parameters)


@contextmanager
def reached(parameters: Iterable[nn.Parameter]) -> Iterator[set[nn.Parameter]]:
    """The parameters that backward passes within it give a gradient to. (DistributedDataParallel leaves zeros on the others.)"""
    found: set[nn.Parameter] = set()

    def note(parameter: Tensor) -> None:
        if parameter.grad is not None:  # torch calls it as well where the gradient is none
            found.add(cast(nn.Parameter, parameter))

    hooks = [p.register_post_accumulate_grad_hook(note) for p in parameters]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
