"""LinearSolver: solves A u = v for every task of a chunk, given products with A."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from imaml_lightning.solution import Solution

Product = Callable[[Tensor], Tensor]


class LinearSolver(ABC):
    """A solver of symmetric systems, one for each row; its fields are its options."""

    @abstractmethod
    def solve(self, product: Product, rhs: Tensor) -> Solution:
        """Solve A u = v.

        Args:
            product: ``[task, param] -> [task, param]``, A times each row.
            rhs: v ``[task, param]``.

        Returns:
            u with, for each task, a result code, the products used, and ‖A u − v‖ / ‖v‖ (0 where v = 0).
        """


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows ``[task, param]``, as a column ``[task, 1]``."""
    return (a * b).sum(1, keepdim=True)
