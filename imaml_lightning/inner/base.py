"""InnerSolver: minimises the inner objective of every task of a chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from imaml_lightning.errors import check_at_least, check_fraction, check_positive
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.solution import Solution


class InnerSolver(ABC):
    """A minimiser of G(φ), one problem for each row of φ; its fields are its options.

    Nothing is differentiated through it: a solver may use any arithmetic, in any library.
    """

    @abstractmethod
    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        """Minimise G from ``start [task, param]``.

        Returns:
            φ with, for each task, a result code, the steps taken, and the tolerance-relevant residual ‖∇_φ G‖ at the
            last point where the solver knew it. The adaptation measures the residual at φ itself and
            certifies the solution by it, so a solver need not spend an evaluation on this.
        """


@dataclass(frozen=True)
class SteppedSolver(InnerSolver):
    """What the solvers that take steps have in common: the first or only size of a step, and when to stop.

    Args:
        lr: step size.
        max_steps: steps, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.

    Raises:
        UsageError: for a value that cannot be used.
    """

    lr: float = 0.1
    max_steps: int = 16
    rtol: float = 0.0

    def __post_init__(self) -> None:
        check_positive("inner_solver", lr=self.lr)
        check_at_least(0, "inner_solver", max_steps=self.max_steps)
        check_fraction("inner_solver", rtol=self.rtol)
