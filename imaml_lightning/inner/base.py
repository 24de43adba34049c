"""InnerSolver: minimises the inner objective of every task of a chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from imaml_lightning.objective import InnerObjective
from imaml_lightning.solution import Solution


class InnerSolver(ABC):
    """A minimiser of G(φ), one problem for each row of φ; its fields are its options.

    Nothing is differentiated through it: a solver may use any arithmetic, in any library.
    """

    @abstractmethod
    def minimise(self, objective: InnerObjective, start: Tensor) -> Solution:
        """Minimise G from ``start [task, param]``.

        Returns:
            φ with, for each task, a result code, the steps taken, and the tolerance-relevant residual ‖∇_φ G‖ at the
            last point where the solver knew it. The adaptation measures the residual at φ itself and
            certifies the solution by it, so a solver need not spend an evaluation on this.
        """
