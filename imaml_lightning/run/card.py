"""The card beside a checkpoint: what it is, what it can do, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import wandb
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger

from imaml_lightning import __version__
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.learner.meta_learner import MetaLearner

NAME = "card.md"


def write_card(
    checkpoint: Path,
    learner: MetaLearner,
    data: EpisodeDataModule,
    figures: Mapping[str, str],
    command: Sequence[str],
    licence: str | None,
    options: Mapping[str, Any],
) -> Path:
    """Write ``card.md`` beside ``checkpoint``.

    Args:
        checkpoint: best.ckpt of a run.
        learner: with its weights.
        data: on which it was trained and tested.
        figures: what the test says, line by line.
        command: the words that trained it.
        licence: under which it may be used.
        options: the run's whole configuration.
    """
    source = options["data"]["source"]
    parameters = sum(p.numel() for p in learner.network.parameters())
    lines = [
        f"# {checkpoint.parent.parent.name}/{checkpoint.parent.name}",
        "",
        f"- network: {type(learner.network).__name__}, {parameters:,} parameters, of which {sum(learner.flat.sizes):,} are adapted",
        f"- algorithm: {type(learner.adaptation).__name__}",
        f"- data: {type(data.source).__name__}, inputs {tuple(data.source.shape)}",
        f"- trained with: {_episodes(data)}, {data.tasks} tasks a meta-step, seed {data.seed}",
        f"- protocol: {learner.protocol}",
        *(f"- {name}: {value}" for name, value in figures.items() if name.startswith("test")),
        f"- licence: {licence or 'not stated (fit --licence TEXT states it); that of the data and of pretrained weights counts too'}",
        f"- software: imaml_lightning {__version__}, torch {torch.__version__}",
        "",
        "Made by",
        "",
        f"    python -m imaml_lightning {shlex.join(command)}",
        "",
        "and again by `fit --config config.yaml` with the config.yaml beside it. Used by",
        "",
        f"    python -m imaml_lightning predict --ckpt_path {checkpoint.name} --support FOLDER --query FOLDER",
        "",
        "The data, as they were named:",
        "",
        *(f"    {line}" for line in yaml.safe_dump(source, sort_keys=False).splitlines()),
    ]
    card = checkpoint.with_name(NAME)
    card.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return card


def _episodes(data: EpisodeDataModule) -> str:
    """``5-way 1 to 9-shot episodes, 15 queries``."""
    way, shots, query = data.training
    number = f"{shots[0]} to {shots[-1]}" if len(shots) > 1 else str(shots[-1])
    return (
        f"{way}-way {number}-shot episodes, {query} queries"
        if data.source.task == "classification"
        else f"{number}-shot episodes, {query} queries"
    )


def share(loggers: Iterable[Logger], checkpoint: Path, card: Path) -> None:
    """Give W&B the checkpoint and its card as an artifact of kind ``model``; offline it goes with ``wandb sync``."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run: Any = logger.experiment
            artifact = wandb.Artifact(f"{checkpoint.parent.parent.name}-{checkpoint.parent.name}", "model")
            artifact.description = card.read_text(encoding="utf-8")
            for file in (checkpoint, card):
                artifact.add_file(str(file))
            run.log_artifact(artifact, aliases=["best"])
