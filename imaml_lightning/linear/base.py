"""LinearSolver: solves A u = v for every task of a chunk, given products with A."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from imaml_lightning.problem.solution import Solution

Product = Callable[[Tensor], Tensor]


class LinearSolver(ABC):
    """A solver of systems, one for each row, symmetric unless the class says that they need not be; its fields are its options."""

    @abstractmethod
    def solve(self, product: Product, rhs: Tensor) -> Solution:
        """Solve A u = v.

        Args:
            product: ``[task, param] -> [task, param]``, A times each row.
            rhs: v ``[task, param]``.

        Returns:
            u with, for each task, a result code, the products used, and ‖A u − v‖ / ‖v‖ (0 where v = 0).
        """
