"""What a checkpoint holds: a learner, and the data that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import CONFIG_KEY, TRUSTED, check_trusted, named_classes, read_checkpoint
from imaml_lightning.learner.meta_learner import MetaLearner


def load(path: str | Path, trust: Sequence[str] = (), **parts: Any) -> MetaLearner:
    """The learner of a checkpoint, on the CPU, ready to adapt.

    Args:
        path: a file.
        trust: packages, besides ours and torch's, whose classes the checkpoint may name.
        **parts: network, adaptation and whatever else was given to the learner as an object in Python, which a checkpoint
            does not hold: made as in training.

    Raises:
        UsageError: the file is missing or damaged, names a class of another package, or needs a part that is not given.
    """
    return MetaLearner.load_from_checkpoint(path, map_location="cpu", trust=trust, **parts).eval()


def load_data(path: str | Path, trust: Sequence[str] = ()) -> EpisodeDataModule:
    """The data that the learner of a checkpoint was trained on.

    Args:
        path: a file.
        trust: packages, besides ours and torch's, whose classes the checkpoint may name.

    Raises:
        UsageError: the file is not a checkpoint of the command line, whose checkpoints hold their configuration, or it
            names a class of another package.
    """
    config = read_checkpoint(path).get(CONFIG_KEY)
    if config is None:
        raise UsageError(
            f"checkpoint {path} holds no configuration: use one that fit has written, or load its learner alone"
        )
    check_trusted(named_classes(config["data"]), path, trust)
    set_parsing_settings(import_path_allowlist=[*TRUSTED, *trust])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpisodeDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
