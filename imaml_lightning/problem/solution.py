"""Solution: what every solver returns, with a result code for each task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError


class Result(IntEnum):
    """How a solve ended; ``advice`` says what to do about it."""

    CONVERGED = 0
    STEP_LIMIT = 1
    INDEFINITE = 2
    BREAKDOWN = 3
    NONFINITE = 4
    STALLED = 5

    @property
    def advice(self) -> str:
        """One sentence for the person who reads the log."""
        return _ADVICE[self]


_ADVICE = {
    Result.CONVERGED: "The tolerance was met.",
    Result.STEP_LIMIT: "The step limit came before the tolerance: where the residual falls but is too large raise max_steps, "
    "where it grew lower the rate.",
    Result.INDEFINITE: "Negative curvature was met: use GaussNewton curvature, MINRES, more damping or a larger λ.",
    Result.BREAKDOWN: "The recurrence broke down before the tolerance: the system is singular to rounding; "
    "use a larger λ or more damping.",
    Result.NONFINITE: "A number overflowed or was not a number: lower the inner learning rate.",
    Result.STALLED: "The search found no lower point: this is as near to a minimiser as the arithmetic allows.",
}


@dataclass(frozen=True)
class Solution:
    """The outcome of a batched solve, one row a task.

    ``residual`` is ‖∇_φ G‖ for inner solvers and ‖A u − v‖ / ‖v‖ for linear solvers.
    """

    value: Tensor  # [task, param]
    result: Tensor  # [task], Result codes
    steps: Tensor  # [task]
    residual: Tensor  # [task]
    tolerance: Tensor  # [task], the residual at which the solve counts as converged

    def certified(self, residual: Tensor) -> Solution:
        """The same point with a freshly measured ``residual [task]``.

        Codes are made to agree with it: CONVERGED where, and only where, it is within the tolerance.
        """
        met = residual <= self.tolerance
        result = torch.where(met, Result.CONVERGED, self.result)
        result = torch.where(~met & (result == Result.CONVERGED), Result.STEP_LIMIT, result)
        result = torch.where(residual.isfinite(), result, Result.NONFINITE)
        return replace(self, result=result, residual=residual)


def check_converged(what: str, solution: Solution) -> None:
    """Refuse a solve of which a task did not converge."""
    failed = (solution.result != Result.CONVERGED).nonzero().squeeze(1)
    if len(failed):
        of = f" number {int(failed[0])}" if len(solution.result) > 1 else ""
        of += f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        code = Result(int(solution.result[failed[0]]))
        raise UsageError(
            f"{what}{of} was not solved: residual {float(solution.residual[failed[0]]):.1e} after "
            f"{int(solution.steps[failed[0]])} steps, {code.name}. {code.advice}"
        )


def indicators(result: Tensor) -> dict[str, Tensor]:
    """For each code, by its lower-case name, 1 where a task ended with it and else 0; their means are shares."""
    return {code.name.lower(): (result == code).double() for code in Result}
