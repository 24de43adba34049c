"""Adaptation curves: how the query score of each task changes along its inner solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.evaluation.figures.style import AFTER, TRAIN, WRONG


def adaptation_curves(
    evaluations: Sequence[int], figures: Mapping[str, Tensor], trained_steps: int | None = None
) -> Figure:
    """Accuracy (or loss) of every task over the gradient evaluations of the inner solver, and their median.

    Args:
        evaluations: of the gradient at each ``point``.
        figures: ``loss [point, task]``, and ``accuracy [point, task]`` for classes.
        trained_steps: where the solver stops in training, if the curve goes on from there.
    """
    figure = Figure(figsize=(4.2 * len(figures), 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        values = values.double().cpu()
        axes.plot(evaluations, values.numpy(), color=TRAIN, alpha=0.35, linewidth=0.8)
        axes.plot(
            evaluations,
            values.nanquantile(0.5, dim=1),
            color=AFTER,
            linewidth=2,
            label=f"median of {values.shape[1]} tasks",
        )
        low, high = values.nanquantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=1)
        axes.fill_between(evaluations, low, high, color=AFTER, alpha=0.15, linewidth=0, label="middle half")
        if trained_steps is not None:
            axes.axvline(trained_steps, color=WRONG, linestyle=":", label="where training stops")
        axes.set(xlabel="gradient evaluations of the inner solver", ylabel=f"query {name}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    return figure
