"""What the log tells: figures of each task, and their means and medians over the episodes of a validation or test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.adaptation import Adapted
from imaml_lightning.learner.medians import EpisodeMedian
from imaml_lightning.learner.metrics import EpisodeMean
from imaml_lightning.problem.solution import Result, indicators

#: Figures of which validation and test give the median beside the mean.
MEDIANS = ("loss", "loss_before", "accuracy", "accuracy_before", "inner_stationarity", "inner_growth")


class Scoreboard:
    """Figures of episodes, by name; a name may begin with a test's setting and a slash."""

    def __init__(self) -> None:
        self._means: dict[str, EpisodeMean] = {}
        self._medians: dict[str, EpisodeMedian] = {}

    def clear(self) -> None:
        """Begin anew."""
        self._means.clear()
        self._medians.clear()

    def update(self, figures: Mapping[str, Tensor], setting: str = "") -> None:
        """Take in figures of tasks, ``[task]`` each."""
        for name, values in figures.items():
            path = f"{setting}{name}"
            if path not in self._means:
                self._means[path] = EpisodeMean().to(values.device)
                self._medians[path] = EpisodeMedian().to(values.device)
            self._means[path].update(values)
            self._medians[path].update(values)

    def figures(self) -> dict[str, Tensor]:
        """Means under their names, 95 % intervals of losses and accuracies (``_ci95``) and medians (``_median``), over all ranks."""
        found: dict[str, Tensor] = {}
        for path, metric in self._means.items():
            score, name = metric.compute(), path.rpartition("/")[2]
            found[path] = score["mean"].float()
            if name in ("loss", "accuracy"):
                found[f"{path}_ci95"] = score["ci95"].float()
            if name in MEDIANS:
                found[f"{path}_median"] = self._medians[path].compute()
        return found


def task_figures(adapted: Adapted, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the log tells of each task of a chunk, all ``[task]``: how it was judged at θ and at φ, and both solves."""
    logs = {name: value.detach() for name, value in after.items()}
    logs |= {f"{name}_before": value for name, value in before.items()}
    logs |= {"inner_stationarity": adapted.stationarity}
    for name, solution in (("inner", adapted.inner), ("linear", adapted.linear)):
        if solution is not None:
            logs |= {f"{name}_residual": solution.residual, f"{name}_steps": solution.steps}
            logs |= {f"{name}_{code}": share for code, share in indicators(solution.result).items()}
    return logs


def mean_figures(chunks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the tasks of all chunks."""
    return {name: torch.cat([chunk[name] for chunk in chunks]).double().mean() for name in chunks[0]}


def setting_of(loaders: Any, number: int) -> str:
    """What goes before the figures of one test loader out of several: its name, or else its number, and a slash."""
    if isinstance(loaders, Mapping):
        return f"{list(loaders)[number]}/"
    return f"{number}/" if isinstance(loaders, Sequence) and len(loaders) > 1 else ""


def validation_figures(classes: bool) -> set[str]:
    """Names of what validation logs of an iterative inner solver, with accuracies where the targets are ``classes``."""
    scores = ("loss", "accuracy") if classes else ("loss",)
    outcomes = ("diverged", "growth", "growth_median", "stationarity_median")
    inner = ("residual", "stationarity", "steps", *outcomes, *(code.name.lower() for code in Result))
    kinds = ("", "_before", "_ci95", "_median", "_before_median")
    names = [f"{score}{kind}" for score in scores for kind in kinds]
    return {f"val/{name}" for name in (*names, *(f"inner_{name}" for name in inner))}
