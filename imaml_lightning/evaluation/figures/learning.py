"""Learning curves: everything a run's metrics.csv tells, in small multiples."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imaml_lightning.evaluation.figures.style import AFTER, BEFORE, RESULT, SERIES, TRAIN

Rows = list[dict[str, str]]


def learning_curves(folder: Path) -> Figure:
    """Six panels over meta-steps: accuracy, loss, the two errors of the meta-gradient, how the linear solves ended, the
    norm of the meta-gradient, and λ, or where that is fixed the steps that the solves took.

    Args:
        folder: of a run, with its metrics.csv. Panels without a figure say so.
    """
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    for axes, name in zip(panels, ("accuracy", "loss"), strict=False):
        _plot(axes, rows, f"train/{name}", "train, adapted", color=TRAIN, linewidth=1)
        _plot(axes, rows, f"val/{name}", "validation, adapted", color=AFTER, marker="o", markersize=3)
        _plot(axes, rows, f"val/{name}_before", "validation, at θ", color=BEFORE, linestyle="--")
        axes.set_title(f"query {name}")
    _plot(panels[2], rows, "train/inner_stationarity", "inner solve: ‖∇G‖ / ‖∇L‖", color=SERIES[0])
    _plot(panels[2], rows, "train/linear_residual", "linear solve: ‖Au − v‖ / ‖v‖", color=SERIES[1])
    panels[2].set(title="errors of the meta-gradient", yscale="log")
    _results(panels[3], rows)
    _plot(panels[4], rows, "train/gradient_norm", "", color=SERIES[0])
    panels[4].set(title="norm of the meta-gradient", yscale="log")
    _strength_or_steps(panels[5], rows)
    for axes in panels:
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        if not (axes.lines or axes.collections):
            axes.set_yscale("linear")
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "not in this run", ha="center", transform=axes.transAxes, color=BEFORE)
        elif axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, frameon=False)
    for axes in panels[3:]:
        axes.set_xlabel("meta-step")
    figure.suptitle(_title(folder), fontsize=10)
    return figure


def _title(folder: Path) -> str:
    """What was trained on what, where the run's config.yaml tells; and the run's name and number."""
    experiment, number = folder.resolve().parts[-2:]
    name = f"{experiment}, run {number}"
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        data, model = config["data"], config["model"]
        what, source = (part["class_path"].rpartition(".")[2] for part in (model["adaptation"], data["source"]))
        way = f"{data['way']}-way " if "way" in model["network"]["init_args"] else ""
    except (OSError, LookupError, TypeError):
        return name
    return f"{what} on {source}, {way}{data['shot']}-shot ({name})"


def _plot(axes: Axes, rows: Rows, column: str, label: str, **style: Any) -> None:
    steps, values = _series(rows, column)
    if steps:
        axes.plot(steps, values, label=label, **{"linewidth": 1.2, **style})


def _results(axes: Axes, rows: Rows) -> None:
    """Shares of the result codes of the linear solves, stacked to 1."""
    axes.set_title("how the linear solves ended")
    series = {name: _series(rows, f"train/linear_{name}") for name in RESULT}
    seen = {name: values for name, (_, values) in series.items() if any(values)}
    if seen:
        steps = series["converged"][0]
        labels = [name.replace("_", " ") for name in seen]
        axes.stackplot(steps, *seen.values(), labels=labels, colors=[RESULT[name] for name in seen], alpha=0.8)
        axes.set(ylim=(0, 1), ylabel="share of tasks")


def _strength_or_steps(axes: Axes, rows: Rows) -> None:
    """λ where it changes; else a straight line would say less than the steps of the solves."""
    strengths = _series(rows, "train/strength")[1]
    if len(set(strengths)) > 1:
        _plot(axes, rows, "train/strength", "mean over parameters", color=SERIES[0])
        axes.set(title="strength λ of the regulariser")
        return
    _plot(axes, rows, "train/inner_steps", "inner solve", color=SERIES[0])
    _plot(axes, rows, "train/linear_steps", "linear solve", color=SERIES[1])
    axes.set(title="steps of the solves" + (f" (λ = {strengths[0]:.4g})" if strengths else ""))


def _series(rows: Rows, column: str) -> tuple[list[int], list[float]]:
    """Meta-steps, counted from 1, and the values of a column."""
    rows = [row for row in rows if row.get(column)]
    return [int(row["step"]) + 1 for row in rows], [float(row[column]) for row in rows]
