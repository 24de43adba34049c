"""Health of the solves: residuals and result codes of each task, for the inner and for the linear solve."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from imaml_lightning.evaluation.figures.style import RESULT
from imaml_lightning.problem.solution import Result, Solution

FLOOR = 1e-16  # residuals of zero are shown here


def solve_histograms(inner: Solution, stationarity: Tensor, linear: Solution | None) -> Figure:
    """Histograms over tasks of ‖∇G‖ / ‖∇L‖ at φ, and of ‖Au − v‖ / ‖v‖, coloured by how each solve ended.

    Args:
        inner: of ``task`` tasks.
        stationarity: ``[task]``.
        linear: of the same tasks; None where there is no linear system.
    """
    parts = [("inner solve: ‖∇G‖ / ‖∇L‖", stationarity, inner.result)]
    if linear is not None:
        parts.append(("linear solve: ‖Au − v‖ / ‖v‖", linear.residual, linear.result))
    figure = Figure(figsize=(4.4 * len(parts), 3), layout="constrained")
    for axes, (title, residual, result) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        _histogram(axes, residual, result)
        axes.set_title(title, fontsize=10)
    return figure


def _histogram(axes: Axes, residual: Tensor, result: Tensor) -> None:
    values = np.nan_to_num(residual.double().cpu().numpy(), nan=np.inf)
    values = np.clip(values, FLOOR, 1e6)  # a residual that is not finite counts on the far right
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    edges = np.logspace(low, max(high, low + 1), 21)
    codes = [code for code in Result if (result == code).any()]
    groups = [values[(result == code).cpu().numpy()] for code in codes]
    names = [code.name.lower() for code in codes]
    labels = [f"{name.replace('_', ' ')}: {len(group)}" for name, group in zip(names, groups, strict=True)]
    axes.hist(groups, bins=edges.tolist(), stacked=True, color=[RESULT[name] for name in names], label=labels)
    axes.set(xscale="log", ylabel="tasks")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False)
