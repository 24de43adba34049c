"""Limited-memory BFGS."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least
from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.line_search import Point, backtrack
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import any_left, dot
from imaml_lightning.problem.solution import Solution

#: Pairs with sᵀy below this share of ‖s‖ ‖y‖ would make the model of the Hessian all but singular.
CAUTION = 1e-8

Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class LBFGS(SteppedSolver):
    """φ ← φ − α B ∇G(φ), with B the inverse BFGS matrix of the last steps s and gradient changes y ``[task, param]``.

    α is 1 unless the line search halves it. Superlinear in practice once ``history`` pairs span the large curvatures.
    Pairs with sᵀy ≤ 0 (negative curvature) are left out, for each task by itself, so B stays positive definite and G
    falls at every step. A task for which no α helps ends with STALLED: it is as good as the arithmetic allows.

    Args:
        lr: B = lr · I before there is a pair.
        max_steps: accepted steps, at most.
        rtol: stop where ‖∇G‖ ≤ rtol ‖∇G(start)‖; 0 takes all steps.
        history: pairs that are kept; memory is 2 · history · task · param numbers.

    Cost: one gradient evaluation a step, and one for each halving; one more at the start. Source: Nocedal and Wright,
    algorithms 7.4 and 7.5; Li and Fukushima (2001) for leaving pairs out.
    """

    history: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, "inner_solver", history=self.history)

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        at = Point(start, *objective.value_and_gradient(start))
        one = torch.ones_like(start[:, :1])
        gamma = self.lr * one
        pairs: deque[Pair] = deque(maxlen=self.history)
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            active = progress.see(at.phi, at.gradient)
            if not any_left(active):
                break
            before = at
            at, taken = backtrack(objective, at, -_inverse_times(pairs, gamma, at.gradient), one, active)
            progress.give_up(active & (taken == 0))

            s, y = at.phi - before.phi, at.gradient - before.gradient
            sy = dot(s, y)
            keep = sy > CAUTION * (dot(s, s) * dot(y, y)).sqrt()
            # ρ = 0 makes a pair without effect on its task.
            pairs.append((s, y, torch.where(keep, 1 / sy, 0)))
            gamma = torch.where(keep, sy / dot(y, y), gamma)
        return progress.solution(at.phi, at.gradient)


def _inverse_times(pairs: Sequence[Pair], gamma: Tensor, gradient: Tensor) -> Tensor:
    """B ∇G by the two-loop recursion, B₀ = γ I."""
    q = gradient
    alphas = []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * dot(s, q))
        q = q - alphas[-1] * y
    r = gamma * q
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + (alpha - rho * dot(y, r)) * s
    return r
