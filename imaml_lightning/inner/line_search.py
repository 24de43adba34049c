"""Backtracking line search, for every task of a chunk at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.rows import any_left, dot

#: Halvings before a direction is given up; 2⁻³⁰ of a step is rounding.
MAX_TRIALS = 30
#: Share of the decrease that the slope promises with which a step is content.
SLOPE = 1e-4


class Point(NamedTuple):
    """Where each task is."""

    phi: Tensor  # [task, param]
    value: Tensor  # G [task]
    gradient: Tensor  # ∇G [task, param]


def backtrack(
    objective: Objective, at: Point, direction: Tensor, alpha: Tensor, active: Tensor
) -> tuple[Point, Tensor]:
    """φ + α d for the first α of α₀, α₀/2, α₀/4, … that makes G fall enough; ``active [task, 1]`` tasks only.

    Enough is Armijo's condition G(φ + α d) ≤ G(φ) + c α dᵀ∇G(φ). Close to a minimiser the difference of two values of G
    is rounding; there the condition is put in terms of slopes, which are accurate: dᵀ∇G(φ + α d) ≤ (2c − 1) dᵀ∇G(φ),
    the same for a quadratic.

    Args:
        direction: d ``[task, param]``, of descent.
        alpha: α₀ ``[task, 1]``.

    Returns:
        The new points, and α ``[task, 1]``: 0 for tasks that are not active or found no step; these stay where they
        are.

    Cost: one gradient evaluation a trial. Source: Nocedal and Wright, algorithm 3.1; Hager and Zhang (2005), equation
    4.1.
    """
    slope = dot(at.gradient, direction)
    noise = torch.finfo(at.value.dtype).eps * at.value.abs().unsqueeze(1)
    taken, pending = torch.zeros_like(slope), active
    new = at
    for _ in range(MAX_TRIALS):
        phi = torch.where(pending, at.phi + alpha * direction, at.phi)
        value, gradient = objective.value_and_gradient(phi)
        change = (value - at.value).unsqueeze(1)
        flat = (change <= noise) & (dot(gradient, direction) <= (2 * SLOPE - 1) * slope)
        enough = pending & ((change <= SLOPE * alpha * slope) | flat) & gradient.isfinite().all(1, keepdim=True)
        new = Point(
            torch.where(enough, phi, new.phi),
            torch.where(enough.squeeze(1), value, new.value),
            torch.where(enough, gradient, new.gradient),
        )
        taken = torch.where(enough, alpha, taken)
        pending = pending & ~enough
        if not any_left(pending):
            break
        alpha = alpha / 2
    return new, taken
