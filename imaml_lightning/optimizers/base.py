"""DifferentiableOptimizer: a rule φ ← φ + update(gradient, state), written so that autograd can walk back through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction

#: Tensors ``[task, param, ...]`` that a rule remembers, by the names that torch.optim gives them.
State = dict[str, Tensor]


class DifferentiableOptimizer(ABC):
    """One step of an optimizer as a pure function: nothing is changed in place, everything has a derivative.

    Derivatives flow to φ, to the gradient, to the state, and to every hyper-parameter that is a tensor.
    """

    #: Parts of the state that an outer torch.optim optimizer of the same kind can give.
    moments: ClassVar[tuple[str, ...]] = ()

    def start(self, phi: Tensor) -> State:
        """The state before the first step from ``phi [task, param]``."""
        return {}

    @abstractmethod
    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        """φ and the state after step number ``step`` (1, 2, ...) with ``gradient`` at ``phi``, both ``[task, param]``."""


@dataclass(frozen=True)
class TorchRule(DifferentiableOptimizer):
    """A rule of torch.optim; its fields are the hyper-parameters, by torch's names (betas are beta1 and beta2).

    Each float may be replaced by a tensor that broadcasts against ``[task, param]``: then it can be learned.

    Raises:
        UsageError: for a hyper-parameter outside its range.
    """

    #: Hyper-parameters that lie in [0, 1); all others are at least 0.
    fractions: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in self.hyperparameters().items():
            if isinstance(value, Tensor):
                continue
            if name in self.fractions:
                check_fraction("optimizer", **{name: value})
            else:
                check_at_least(0, "optimizer", **{name: value})

    def hyperparameters(self) -> dict[str, float | Tensor]:
        """What can be learned: the hyper-parameters that are numbers."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type in (float, "float")}


def off(hyperparameter: float | Tensor) -> bool:
    """Whether a hyper-parameter is the number 0, so that its term can be left out; a learned one never is."""
    return not isinstance(hyperparameter, Tensor) and hyperparameter == 0


def decayed(gradient: Tensor, phi: Tensor, weight_decay: float | Tensor) -> Tensor:
    """gradient + weight_decay · φ."""
    return gradient if off(weight_decay) else gradient + weight_decay * phi


def root(square: Tensor) -> Tensor:
    """√square, with derivative 0 where square is 0.

    A coordinate whose gradient has always been 0 (behind a dead ReLU) would else turn every derivative into NaN.
    """
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
