"""The checkpoints that a command without a Trainer names: how they read their inputs, and their learners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaml_lightning.cli.arguments import packages
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.loading import load
from imaml_lightning.learner.checkpoint import find_checkpoint
from imaml_lightning.learner.meta_learner import MetaLearner


@dataclass(frozen=True)
class Named:
    """Checkpoints that belong together, their learners not yet built."""

    paths: list[Path]
    reading: dict[str, Any]  # see EpisodeSource.reading

    def learners(self, trust: str | None) -> list[MetaLearner]:
        """Theirs, ready to adapt."""
        return [load(path, packages(trust)) for path in self.paths]


def named_checkpoints(ckpt_path: str | list[str], output: str, name: str | None) -> Named:
    """What ``--ckpt_path`` means: a file, several, or best or last with a name.

    Raises:
        UsageError: one is missing or damaged, does not say how its inputs are read, or reads them otherwise than another.
    """
    given = [ckpt_path] if isinstance(ckpt_path, str) else ckpt_path
    found = [find_checkpoint(one, output, name or "") for one in given]
    saved = [_reading(path, checkpoint) for path, checkpoint in found]
    if any(one != saved[0] for one in saved):
        raise UsageError("the checkpoints read their inputs in different ways: give ones trained on the same data")
    return Named([path for path, _ in found], saved[0])


def _reading(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    state = checkpoint.get(EpisodeDataModule.__qualname__)
    if not state or not state["reading"]:
        raise UsageError(f"checkpoint {path} does not say how its inputs are read: train one on pictures or a table")
    return state["reading"]
