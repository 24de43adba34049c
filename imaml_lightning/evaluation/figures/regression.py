"""Fits of regression tasks."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.episode import Episode
from imaml_lightning.evaluation.figures.style import AFTER, BEFORE, TRAIN, WRONG


def regression_fits(episode: Episode, before: Tensor, after: Tensor, spread: Tensor | None = None) -> Figure:
    """Up to four regression tasks: of one feature and one output, targets, support points, and predictions before and
    after over the feature; of more, predictions over targets.

    Args:
        episode: x ``[task, example, feature]`` and y ``[task, example, output]``.
        before: outputs ``[task, example, output]`` on the query set at θ.
        after: the same at φ.
        spread: standard deviations ``[task, example]`` of ``after``; two of them are shaded, over one feature.
    """
    if episode.query.x.shape[2:] != (1,) or after.shape[-1] > 1:
        return _predicted_over_target(episode, before, after)
    tasks = min(4, episode.tasks)
    figure = Figure(figsize=(2.8 * tasks, 2.8), layout="constrained")
    for task, axes in enumerate(figure.subplots(1, tasks, squeeze=False)[0]):
        real = episode.query.real()[task].nonzero().flatten()
        order = real[torch.argsort(episode.query.x[task, real, 0])]
        x, y, start, end = (t[task, order, 0].cpu() for t in (*episode.query, before, after))
        axes.plot(x, y, color=BEFORE, label="target")
        axes.plot(x, start, "--", color=TRAIN, label="before")
        axes.plot(x, end, color=AFTER, label="after")
        if spread is not None:
            two = 2 * spread[task, order].cpu()
            axes.fill_between(x, end - two, end + two, color=AFTER, alpha=0.15, linewidth=0, label="± 2 sd")
        given = episode.support.real()[task]
        support = (t[task, given, 0].cpu() for t in episode.support)
        axes.plot(*support, "^", color=WRONG, label="support")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    return figure


def _predicted_over_target(episode: Episode, before: Tensor, after: Tensor) -> Figure:
    tasks = min(4, episode.tasks)
    figure = Figure(figsize=(2.8 * tasks, 3), layout="constrained")
    for task, axes in enumerate(figure.subplots(1, tasks, squeeze=False)[0]):
        targets = episode.query.y[task].flatten().cpu()  # padding is not a number and is not drawn
        axes.plot(targets, before[task].flatten().cpu(), "x", color=TRAIN, markersize=4, label="before")
        axes.plot(targets, after[task].flatten().cpu(), "o", color=AFTER, markersize=4, label="after")
        axes.axline((float(targets.nanmean()), float(targets.nanmean())), slope=1, color=BEFORE, label="exact")
        axes.set(xlabel="target", ylabel="predicted" if task == 0 else None)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    return figure
