"""Heads for any number of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AnyWay(nn.Linear):
    """z_c = w_cᵀ x, with a row w_c for as many classes as a task has; every row starts at the same meta-parameters.

    Nothing that is meta-learned depends on the number of classes, so a network trained with 60 is tested with 5. The stored
    weight ``[1, feature]`` stands for all rows. No bias: it would be the same for all classes.

    Args:
        features: inputs.
        learn_start: meta-learn the vector at which every row starts; else it is zero. Under cross-entropy a vector that all
            classes share changes no probability, so it is of use only where the body is adapted too.

    Source: Ye and Chao (2022), "How to train your MAML to excel in few-shot classification", section 5 (UNICORN-MAML).
    """

    per_class = ("weight",)

    def __init__(self, features: int, learn_start: bool = False) -> None:
        super().__init__(features, 1, bias=False)
        zero = torch.zeros(1, features)
        if learn_start:
            self.weight = nn.Parameter(zero)
        else:
            del self.weight
            self.register_buffer("weight", zero)

    def extra_repr(self) -> str:
        return f"{self.in_features}, any way"


class UnitLength(nn.Module):
    """x / ‖x‖ of each example."""

    def forward(self, x: Tensor) -> Tensor:
        """``[example, feature]``, as the inputs."""
        return nn.functional.normalize(x, dim=-1)
