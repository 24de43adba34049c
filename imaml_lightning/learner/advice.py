"""What became of inner solves, and what to do about it."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.problem.objective import InnerObjective, LinearisedObjective
from imaml_lightning.problem.precision import full_precision

#: ‖∇G‖ / ‖∇L_S‖ at φ below which an inner problem counts as solved, and as roughly solved.
SOLVED, ROUGHLY = 0.1, 0.5
REMEDY = "set a smaller inner rate, or a solver with a line search (BacktrackingGradientDescent, LBFGS)"


def outcome(objective: InnerObjective, end: LinearisedObjective) -> dict[str, Tensor]:
    """What adaptation has done to G of each task, all ``[task]``: one gradient evaluation, at θ.

    ``inner_diverged`` is 1 where G(φ) is above G(θ), by more than rounding, or not finite, and else 0; ``inner_growth`` is
    ‖∇G(φ)‖ / ‖∇G(θ)‖, 0 where θ is stationary and stays. ``end`` is G linearised at φ.
    """
    with full_precision(end.phi.device):
        before, slope = objective.value_and_gradient(objective.start())
    after, length = end.value(), end.gradient.detach().norm(dim=1)
    rounding = 100 * torch.finfo(before.dtype).eps * before.abs()
    return {
        "inner_diverged": (~(after <= before + rounding)).double(),
        "inner_growth": torch.where(length == 0, 0, length / slope.norm(dim=1)),
    }


def advice(stationarity: float, growth: float, diverged: bool, solves: bool = True) -> str:
    """Whether an inner problem was solved, and the remedy that follows from what happened.

    Args:
        stationarity: ‖∇G‖ / ‖∇L_S‖ at φ.
        growth: ‖∇G(φ)‖ / ‖∇G(θ)‖.
        diverged: G rose, or left the finite numbers.
        solves: the adaptation means to solve it; MAML's few steps do not.
    """
    if diverged:
        return f"diverged, the loss rose: {REMEDY}"
    if stationarity < SOLVED:
        return "solved"
    if not growth <= 1:
        return f"not solved, the gradient grew: {REMEDY}"
    if not solves:
        return "as far as its steps go"
    if stationarity < ROUGHLY:
        return "roughly solved"
    return "not solved, falling but slow: raise max_steps"
