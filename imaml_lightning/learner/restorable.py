"""Restorable: a learner whose checkpoints hold plain data alone, and are read without executing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn

from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import TRUSTED, check_trusted, read_checkpoint
from imaml_lightning.learner.parts import PARTS_KEY, check_parts, kept_parts, warn_of_others
from imaml_lightning.models import weights_follow

#: Checkpoint key for what a run needs, besides its state, to go on bit for bit.
COUNTERS_KEY = "imaml_lightning_counters"

Self = TypeVar("Self", bound="Restorable")


class Restorable(LightningModule):
    """What a checkpoint holds of a learner, and the way back."""

    counters: Sequence[str] = ()  # attributes that a checkpoint keeps

    def save_plain(self, arguments: Mapping[str, Any]) -> None:
        """Keep those of the ``arguments`` of ``__init__`` that are plain data.

        From the command line every argument arrives as its configuration; from Python some are objects, which a
        checkpoint must not hold and which the caller gives again. To be called by ``__init__`` itself.
        """
        given = _given_hyperparameters.get() or arguments
        objects = [name for name, value in given.items() if isinstance(value, nn.Module) or callable(value)]
        plain = {name: value for name, value in given.items() if name not in (*objects, "self", "__class__")}
        self.save_hyperparameters(plain, logger=False)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a file's path alone, not a stream
        cls: type[Self], checkpoint_path: str | Path, *args: Any, trust: Sequence[str] = (), **options: Any
    ) -> Self:
        """The learner of a checkpoint, as Lightning's method of this name, but nothing in the file is executed.

        Args:
            checkpoint_path: a file on this computer.
            *args: as in Lightning, such as ``map_location``.
            trust: packages, besides ours and torch's, whose classes the checkpoint may name.
            **options: arguments of the learner that replace those in the checkpoint.

        Raises:
            UsageError: if the file is missing, damaged, names a class of another package, or needs a part that was an
                object in Python and is not given here.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        arguments = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        check_trusted(arguments, checkpoint_path, trust)
        set_parsing_settings(import_path_allowlist=[*TRUSTED, *trust])  # Lightning builds the learner by jsonargparse
        # Lightning reads the file again; what replaces its arguments names classes by where they are today.
        options = options if "hparams_file" in options else arguments | options
        parts = checkpoint.get(PARTS_KEY, {})
        check_parts(checkpoint_path, parts, options, cls)
        try:
            with torch.inference_mode(False), weights_follow():  # or its parameters could never be differentiated
                learner = super().load_from_checkpoint(checkpoint_path, *args, **options | {"weights_only": True})
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise UsageError(
                f"checkpoint {checkpoint_path} is of another network: give the one that was trained, load(path, network=…)"
            ) from error
        warn_of_others(checkpoint_path, parts, learner)
        return learner

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[COUNTERS_KEY] = {name: getattr(self, name) for name in self.counters}
        if parts := kept_parts(self, self.hparams):
            checkpoint[PARTS_KEY] = parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint.get(COUNTERS_KEY, {}).items():
            setattr(self, name, value)
