"""Errors over steps, with the lines that theory draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from imaml_lightning.evaluation.figures.style import SERIES


def convergence(
    axes: Axes,
    steps: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    theory: Mapping[str, Sequence[float]] | None = None,
    **labels: str,
) -> None:
    """Relative errors on a logarithmic axis; a theory's line is dashed, in the colour of the measurement of that name.

    Args:
        axes: to draw on.
        steps: common to all lines.
        errors: by name.
        theory: bounds by name.
        labels: for the axes: ``xlabel``, ``ylabel``, ``title``.
    """
    for (name, values), colour in zip(errors.items(), SERIES, strict=False):
        axes.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
        if theory and name in theory:
            axes.plot(steps, theory[name], "--", color=colour, linewidth=1)
    axes.set(yscale="log", **labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
