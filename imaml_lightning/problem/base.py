"""Objective: G(φ) as inner solvers see it, and Linearised: G at a point, as curvature sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor


class Linearised(ABC):
    """G at ``phi``.

    Attributes:
        phi: the point ``[task, param]``.
        gradient: ∇_φ G ``[task, param]``; differentiable in every meta-parameter on which G depends.
    """

    phi: Tensor
    gradient: Tensor

    @abstractmethod
    def hvp(self, u: Tensor) -> Tensor:
        """∇²_φφ G u ``[task, param]`` for ``u [task, param]``."""

    @abstractmethod
    def gradient_at(self, phi: Tensor) -> Tensor:
        """∇_φ G ``[task, param]`` at another point, without a graph."""

    @abstractmethod
    def inverse(self, damping: float = 0.0) -> Callable[[Tensor], Tensor]:
        """v ↦ (∇²_φφ G + damping I)⁻¹ v, exactly; a UsageError where it is not known."""


class Objective(ABC):
    """G of a batch of problems as a function of φ ``[task, param]``; that of one task depends on its own row alone."""

    @abstractmethod
    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """G ``[task]`` and ∇_φ G ``[task, param]``, without a graph: one gradient evaluation."""

    @abstractmethod
    def linearise(self, phi: Tensor) -> Linearised:
        """G linearised at ``phi [task, param]``, in full precision: one gradient evaluation."""

    @abstractmethod
    def task(self, index: int) -> Objective:
        """G of one task alone."""
