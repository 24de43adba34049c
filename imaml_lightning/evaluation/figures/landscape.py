"""The inner problem of a network with two weights, as a map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.evaluation.figures.style import AFTER, BEFORE, SERIES, WRONG
from imaml_lightning.problem.objective import InnerObjective

Window = tuple[float, float, float, float]  # left, right, bottom, top


def landscape(axes: Axes, objective: InnerObjective, window: Window, solution: Tensor | None = None) -> None:
    """Level lines of G (filled) and of L_S (dashed) over both weights of the objective's first task; θ as a square.

    Args:
        axes: to draw on.
        objective: of a network with two adapted weights.
        window: what part of the plane.
        solution: φ* ``[param]``; drawn as a star, with the pull of the data, −∇L_S, and the pull of θ, −λ(φ* − θ).
    """
    objective = objective.task(0)
    x, y = torch.linspace(*window[:2], 61), torch.linspace(*window[2:], 61)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2).to(objective.theta.dtype)
    with torch.no_grad():
        value, loss = (
            torch.func.vmap(lambda phi, of=of: of(phi)[0])(grid).reshape(61, 61)
            for of in (objective.value, objective.support_loss)
        )
    axes.contourf(x, y, value.numpy(), levels=_levels(value), cmap="Blues_r", alpha=0.6)
    axes.contour(x, y, loss.numpy(), levels=_levels(loss), colors=BEFORE, linewidths=0.6, linestyles="dashed")
    theta = objective.theta.detach()
    axes.plot(*theta, "s", color="black", markersize=7, label="θ")
    if solution is not None:
        at = objective.linearise(solution.unsqueeze(0))
        # Drawn at one length whatever their size, since they balance: a sixth of the window.
        for pull, colour, label in (
            (-at.loss.gradient, WRONG, "pull of the data, −∇L"),
            (-at.proximal_gradient, SERIES[2], "pull of θ, −λ(φ − θ)"),
        ):
            arrow = pull.detach()[0] / pull.norm().detach().clamp(min=1e-12) * (window[1] - window[0]) / 6
            axes.quiver(
                *solution,
                *arrow,
                angles="xy",
                scale_units="xy",
                scale=1,
                color=colour,
                label=label,
                width=0.012,
                zorder=3,
            )
        axes.plot(*solution, "*", color=AFTER, markeredgecolor="white", markersize=15, label="φ*", zorder=4)
    axes.set(xlim=window[:2], ylim=window[2:], xlabel="weight 1", ylabel="weight 2", aspect="equal")


def _levels(value: Tensor) -> Tensor:
    """Level lines that are dense near the minimum."""
    low, high = value.min().item(), value.max().item()
    return low + (high - low) * torch.linspace(0, 1, 16).square()


def paths(axes: Axes, ways: Mapping[str, Tensor]) -> None:
    """The ways of several solvers, each ``[point, param]``, on a landscape."""
    for (name, way), colour in zip(ways.items(), SERIES[1:] * 2, strict=False):
        axes.plot(*way.T, "o-", color=colour, markersize=3, linewidth=1.2, label=name)


def side_by_side(count: int, size: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` square panels in a row."""
    figure = Figure(figsize=(size * count, size + 0.5), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
