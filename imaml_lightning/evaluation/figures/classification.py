"""Classification at a glance: calibration, confusion, and accuracy by way and shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.evaluation.figures.style import AFTER, BEFORE, SERIES


def calibration_figure(confidence: Tensor, accuracy: Tensor, share: Tensor, error: float) -> Figure:
    """Accuracy over confidence, a point for each bin ``[bin]`` with an area like its ``share``, beside the diagonal of
    a learner that is as often right as it says."""
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color=BEFORE)
    axes.plot(confidence, accuracy, color=AFTER, linewidth=1)
    axes.scatter(confidence, accuracy, s=20 + 400 * share, color=AFTER)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def confusion_figure(shares: Tensor, names: Sequence[str], title: str) -> Figure:
    """``shares [true, predicted]`` as a map, the diagonal left out so that mistakes show."""
    size = 1.5 + 0.24 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    mistakes = shares.clone().fill_diagonal_(float("nan")).numpy()
    image = axes.imshow(mistakes, cmap="Reds", vmin=0)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, fontsize=10)
    axes.set_yticks(ticks, names, fontsize=10)
    axes.set(xlabel="taken for", ylabel="is")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, shrink=0.7, label="share of query images")
    return figure


def way_and_shot_figure(table: Mapping[tuple[int, int], tuple[float, float]]) -> Figure:
    """Accuracy and its 95% interval over the number of classes, a line for each number of shots.

    Args:
        table: (way, shot) -> (mean accuracy, half-width of the interval).
    """
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for shot, colour in zip(sorted({shot for _, shot in table}), SERIES, strict=False):
        ways = sorted(way for way, other in table if other == shot)
        means, halves = zip(*(table[way, shot] for way in ways), strict=True)
        axes.errorbar(ways, means, halves, color=colour, marker="o", capsize=3, label=f"{shot}-shot")
    axes.plot(ways, [1 / way for way in ways], ":", color=BEFORE, label="guessing")
    axes.set(xlabel="way", ylabel="accuracy", xticks=ways, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure
