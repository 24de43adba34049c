"""Progress: which tasks of an inner solve still move, and how each of the others ended."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.problem.rows import any_left, select
from imaml_lightning.problem.solution import Result, Solution


class Progress:
    """The status of every task, which all inner solvers share: one row a task.

    A task stops when ‖∇G‖ ≤ rtol ‖∇G(start)‖, or where its gradient is no longer finite: it then goes back to ``good``,
    its last point with a finite gradient, and stays there. With rtol = 0 only a gradient of exactly zero converges.
    """

    def __init__(self, start: Tensor, rtol: float) -> None:
        self.rtol = rtol
        self.good = start
        self.result = torch.full_like(start[:, 0], Result.STEP_LIMIT, dtype=torch.int64)
        self.steps = torch.zeros_like(self.result)
        self.residual = torch.full_like(start[:, 0], torch.inf)
        self.tolerance: Tensor | None = None

    def see(self, phi: Tensor, gradient: Tensor) -> Tensor:
        """Take in ∇G at ``phi [task, param]``, and count a step for the tasks that move on; returns these ``[task, 1]``."""
        self._judge(phi, gradient)
        active = self.result == Result.STEP_LIMIT
        self.steps = self.steps + active
        return active.unsqueeze(1)

    def move(self, active: Tensor, to: Tensor) -> Tensor:
        """``to [task, param]`` for the tasks that move on, the last good point for the others."""
        return select(active, to, self.good)

    @property
    def over(self) -> bool:
        """Whether no task moves on. The answer waits for the device, so it is asked only where it can be yes early."""
        return self.rtol > 0 and not any_left(self.result == Result.STEP_LIMIT)

    def give_up(self, tasks: Tensor) -> None:
        """End ``tasks [task, 1]``: the line search finds no lower point."""
        self.result = torch.where(tasks.squeeze(1), Result.STALLED, self.result)

    def solution(self, phi: Tensor, gradient: Tensor | None = None) -> Solution:
        """What the solve came to; ``gradient`` at φ where the solver knows it."""
        if gradient is not None:
            self._judge(phi, gradient)
        running = self.result == Result.STEP_LIMIT
        finite = phi.isfinite().all(1)
        value = select((running & finite).unsqueeze(1), phi, self.good)
        result = torch.where(running & ~finite, Result.NONFINITE, self.result)
        tolerance = torch.zeros_like(self.residual) if self.tolerance is None else self.tolerance
        return Solution(value, result, self.steps, self.residual, tolerance)

    def _judge(self, phi: Tensor, gradient: Tensor) -> None:
        norm = gradient.norm(dim=1)
        if self.tolerance is None:
            self.tolerance = self.rtol * norm
        running, finite = self.result == Result.STEP_LIMIT, norm.isfinite()
        self.good = select((running & finite).unsqueeze(1), phi, self.good)
        self.residual = torch.where(running & finite, norm, self.residual)
        self.result = torch.where(running & (norm <= self.tolerance), Result.CONVERGED, self.result)
        self.result = torch.where(running & ~finite, Result.NONFINITE, self.result)
