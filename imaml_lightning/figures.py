"""Pictures of a run: its learning curves, and one validation episode before and after adaptation.

``python -m imaml_lightning.figures RUN_FOLDER`` draws the curves of a run's metrics.csv anew.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.episode import Episode

RIGHT, WRONG = "#2a7f3f", "#c0392b"


def learning_curves(folder: Path) -> Figure:
    """Accuracy (or loss) before and after adaptation, and the two errors of the meta-gradient, over meta-steps."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    name = "accuracy" if any(row.get("train/accuracy") for row in rows) else "loss"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, label, style in (
        (f"train/{name}", "train, after adaptation", {"color": "#8fb3d9", "linewidth": 1}),
        (f"val/{name}", "validation, after adaptation", {"color": "#1f4e8c", "marker": "o", "markersize": 3}),
        (f"val/{name}_before", "validation, before adaptation", {"color": "#999999", "linestyle": "--"}),
    ):
        _plot(left, rows, column, label, **style)
    left.set(xlabel="meta-step", ylabel=f"query {name}", title=folder.resolve().parent.name)
    for column, label in (
        ("train/inner_stationarity", "inner solve: ‖∇G‖ / ‖∇L‖"),
        ("train/linear_residual", "linear solve: ‖Au − v‖ / ‖v‖"),
    ):
        _plot(right, rows, column, label, linewidth=1)
    right.set(xlabel="meta-step", yscale="log", title="the two errors of the meta-gradient")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    return figure


def _plot(axes: Axes, rows: list[dict[str, str]], column: str, label: str, **style: object) -> None:
    points = [(int(row["step"]) + 1, float(row[column])) for row in rows if row.get(column)]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def contact_sheet(episode: Episode, before: Tensor, after: Tensor) -> Figure:
    """The first task of ``episode``: support images, and query images with the predicted class, right or wrong.

    Args:
        episode: images as floats, one channel or three.
        before, after: logits or probabilities ``[task, example, output]`` on the query set at θ and at φ.
    """
    support, query = episode
    way = int(support.y.max()) + 1
    shown = min(6, int((query.y[0] == 0).sum()))
    figure = Figure(figsize=(1.1 * (shown + 1) + 0.6, 1.25 * way), layout="constrained")
    grid = figure.subplots(way, shown + 1, squeeze=False)
    for number in range(way):
        _image(grid[number, 0], support.x[0, support.y[0] == number][0])
        grid[number, 0].set_ylabel(f"class {number}", fontsize=9)
        mine = (query.y[0] == number).nonzero().flatten()[:shown].tolist()
        for axes in grid[number, 1:]:
            axes.set_axis_off()
        for axes, example in zip(grid[number, 1:], mine, strict=False):
            axes.set_axis_on()
            _image(axes, query.x[0, example])
            guess, prior = int(after[0, example].argmax()), int(before[0, example].argmax())
            colour = RIGHT if guess == number else WRONG
            axes.set_xlabel(f"{prior} → {guess}", fontsize=9, color=colour, labelpad=2)
            for side in axes.spines.values():
                side.set(color=colour, linewidth=2)
    grid[0, 0].set_title("support", fontsize=9)
    note = "query: class predicted before → after adaptation"
    title = grid[0, 1].text(0, 1.06, note, fontsize=9, transform=grid[0, 1].transAxes)
    title.set_in_layout(False)  # or its column would be made as wide as it is
    return figure


def _image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).squeeze(-1).cpu(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def regression_fits(episode: Episode, before: Tensor, after: Tensor) -> Figure:
    """Up to four one-dimensional regression tasks: targets, support points, and predictions before and after."""
    tasks = min(4, episode.tasks)
    figure = Figure(figsize=(2.8 * tasks, 2.6), layout="constrained")
    for task, axes in enumerate(figure.subplots(1, tasks, squeeze=False)[0]):
        order = torch.argsort(episode.query.x[task, :, 0])
        x = episode.query.x[task, order, 0].cpu()
        axes.plot(x, episode.query.y[task, order, 0].cpu(), color="#999999", label="target")
        axes.plot(x, before[task, order, 0].cpu(), "--", color="#8fb3d9", label="before")
        axes.plot(x, after[task, order, 0].cpu(), color="#1f4e8c", label="after")
        axes.plot(
            episode.support.x[task, :, 0].cpu(), episode.support.y[task, :, 0].cpu(), "^", color=WRONG, label="support"
        )
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    run = Path(sys.argv[1])
    learning_curves(run).savefig(run / "learning.png", dpi=120)
    print(run / "learning.png")
