"""What is printed at the end of a command, and the file of predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from imaml_lightning.errors import UsageError


def figures_line(metrics: Mapping[str, Tensor | float], stage: str) -> str:
    """``accuracy 97.31 ± 0.24 % (transductive)`` for classification, ``mean squared error …`` for regression."""
    for name, value in metrics.items():
        metric, _, protocol = name.removeprefix(f"{stage}/").partition("_")
        if metric == "accuracy" and protocol in ("transductive", "inductive"):
            return f"accuracy {100 * value:.2f} ± {100 * metrics[f'{name}_ci95']:.2f} % (95% confidence, {protocol})"
    for name in ("accuracy", "loss"):
        if f"{stage}/{name}" in metrics:
            return f"{name} {metrics[f'{stage}/{name}']:.4f} ± {metrics[f'{stage}/{name}_ci95']:.4f} (95% confidence)"
    return "no figures"


def figures_lines(metrics: Mapping[str, Tensor | float], stage: str, settings: Sequence[str]) -> dict[str, str]:
    """``figures_line`` of each of the settings that the stage was about; of the stage itself where there are none."""
    stages = [f"{stage}/{setting}" for setting in settings] or [stage]
    return {name.replace("/", " "): figures_line(metrics, name) for name in stages}


def print_summary(lines: dict[str, str]) -> None:
    """A small table at the end of a command: what was reached, and where everything lies."""
    for name, value in lines.items():
        print(f"{name:<15} {value}")


def write_predictions(path: Path, outputs: Sequence[Tensor]) -> None:
    """Outputs ``[task, example, output]`` as CSV: episode, example, the largest output's number, and all outputs.

    Nothing is predicted where outputs are not numbers: of padding, and of a task whose adaptation diverged.

    Raises:
        UsageError: if the file cannot be written.
    """
    width = outputs[0].shape[-1]
    try:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["episode", "example", "prediction", *(f"output_{i}" for i in range(width))])
            episode = 0
            for batch in outputs:
                for task in batch.float().cpu():
                    for number, output in enumerate(task):
                        best: float | str = int(output.argmax()) if width > 1 else float(output[0])
                        best = "" if output.isnan().any() else best
                        rows.writerow([episode, number, best, *(f"{value:.6g}" for value in output.tolist())])
                    episode += 1
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): run in a folder that can be written to") from error
