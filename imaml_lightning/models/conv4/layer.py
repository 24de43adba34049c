"""A layer of a folded network, with its three derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.models.conv4 import fused

#: The gradient to a layer's input (None: to images), and those to its two parameters, or their changes.
Gradients = tuple[Any, Tensor, Tensor]


class Layer(ABC):
    """A layer at one point, with its derivatives in its input x and its two parameters.

    Between layers there are ``[example, task x channel, height, width]``; parameters are ``[task, *shape]``.

    Attributes:
        y: its output.
    """

    y: Tensor

    @abstractmethod
    def jvp(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        """The change of y with x (None: images, which do not change) and the parameters."""

    @abstractmethod
    def vjp(self, g: Tensor, keep: bool) -> Gradients:
        """The gradients to x and the parameters from that to y."""

    @abstractmethod
    def vjp_derivative(self, dg: Tensor) -> Gradients:
        """The changes of the gradients that the last ``vjp`` kept gave, along the last ``jvp``."""


def empty_activation(like: Tensor, *shape: int) -> Tensor:
    """An activation without values yet."""
    fast = torch.channels_last if fused.on_cpu(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=fast)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
