"""Nesterov's accelerated gradient method, with restarts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.inner.base import SteppedSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import dot
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class Nesterov(SteppedSolver):
    """A gradient step from a point that looks ahead, y; the momentum starts anew where it runs uphill.

        φ⁺ = y − lr ∇G(y),   t⁺ = (1 + √(1 + 4t²))/2,   y⁺ = φ⁺ + (t − 1)/t⁺ · (φ⁺ − φ);   all ``[task, param]``

    A task restarts (t = 1) where ∇G(y)ᵀ(φ⁺ − φ) > 0. Converges for lr ≤ 1/(L + λ), L the largest curvature of the
    support loss; then the error falls like (1 − 1/√κ) a step without κ being known. With a larger lr it diverges
    sooner than gradient descent. A task whose gradient is no longer finite goes back to its last good y.

    Args:
        lr: step size.
        max_steps: gradient evaluations, at most.
        rtol: stop where ‖∇G(y)‖ ≤ rtol ‖∇G(start)‖, and return that y; 0 takes all steps.

    Cost: one gradient evaluation a step. Source: Nesterov (1983); O'Donoghue and Candès (2015), "Adaptive restart for
    accelerated gradient schemes", the gradient scheme.
    """

    lr: float = 0.05

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        phi = y = start
        t = torch.ones_like(start[:, :1])
        progress = Progress(start, self.rtol)
        for _ in range(self.max_steps):
            _, gradient = objective.value_and_gradient(y)
            active = progress.see(y, gradient)
            if progress.over:
                break
            previous, phi = phi, progress.move(active, torch.add(y, gradient, alpha=-self.lr))
            move = phi - previous
            t = torch.where(dot(gradient, move) > 0, 1.0, t)
            t, beta = _next(t)
            y = torch.where(active, phi + beta * move, phi)
        return progress.solution(phi)


def _next(t: Tensor) -> tuple[Tensor, Tensor]:
    """t⁺ and the momentum (t − 1)/t⁺."""
    after = (1 + (1 + 4 * t.square()).sqrt()) / 2
    return after, (t - 1) / after
