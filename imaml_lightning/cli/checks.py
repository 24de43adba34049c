"""Whether the parts of a run fit together: seen before anything is run or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from imaml_lightning.cli.complaint import one_line
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import DataError, UsageError
from imaml_lightning.learner.criterion import check_criterion
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.scoreboard import validation_figures


def check_options(options: Namespace) -> None:
    """Refuse values in the place of sections, and steps below 1."""
    for section in ("data", "model"):
        if isinstance(options[section], (int, float, str, list)):
            raise UsageError(f"{section} is {options[section]!r}, which is no section: give its options below it")
    for section, name in (("last", "every_n_train_steps"), ("trainer", "log_every_n_steps")):
        steps = options[section][name]
        if steps is not None and steps < 1:
            raise UsageError(f"--{section}.{name} is {steps}: give at least 1")


def put_in_place(data: EpisodeDataModule, stage: str) -> None:
    """Put the data in place, and see that the episodes asked for can be had.

    Raises:
        DataError: they cannot be put in place.
        UsageError: there are not as many classes or images as asked for.
    """
    try:
        data.prepare_data()  # every rank: a launcher may start them all at once
    except (UsageError, OSError) as error:
        raise DataError(one_line(error)) from error
    data.setup(stage)


def check_losses(learner: MetaLearner, data: EpisodeDataModule) -> None:
    """Refuse losses that would give a number without a meaning for these targets."""
    query = data.episode("train", 0).query
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = learner.network(query.x[0])
    for criterion in filter(None, (learner.criterion, learner.support_criterion)):
        check_criterion(criterion, outputs, query.y[0])


def check_monitor(monitor: str, mode: str, classes: bool) -> None:
    """Refuse a figure that validation does not log, or of which the worst would be kept.

    Raises:
        UsageError: naming one that can be used.
    """
    use = "--best.monitor val/accuracy or val/loss" if classes else "--best.monitor val/loss --best.mode min"
    if monitor not in validation_figures(classes):
        raise UsageError(f"--best.monitor {monitor} is not a figure of this validation: use {use}")
    right = {"accuracy": "max", "loss": "min"}.get(monitor.partition("/")[2], mode)
    if mode != right:
        raise UsageError(f"--best.mode {mode} would keep the worst {monitor}: use --best.mode {right}")


def check_weights(path: Path | None, saved: Mapping[str, Any], learner: MetaLearner) -> None:
    """Refuse a checkpoint of another architecture.

    Raises:
        UsageError: naming the first tensor that differs.
    """
    theirs = {name: tuple(t.shape) for name, t in saved["state_dict"].items()}
    ours = {name: tuple(t.shape) for name, t in learner.state_dict().items()}
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise UsageError(
                f"checkpoint {path} is of another architecture ({name} is {theirs.get(name)} there and "
                f"{ours.get(name)} here): leave out the options that change the network"
            )
