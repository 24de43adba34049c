"""Whether a network fits the episodes of a source: refused before training comes upon it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch.nn.modules.batchnorm import _BatchNorm

from imaml_lightning.data.base import EpisodeSource
from imaml_lightning.data.setting import Setting
from imaml_lightning.errors import UsageError


def check_network(source: EpisodeSource, settings: Sequence[Setting], learner: LightningModule) -> None:
    """Refuse a network that does not fit the source, which is set up.

    Raises:
        UsageError: it cannot take the inputs, or has another number of outputs.
    """
    network, name = learner.get_submodule("network"), type(source).__name__
    like = next((t for t in network.state_dict().values() if t.is_floating_point()), torch.empty(0))
    x = torch.zeros(2, *source.shape, dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = network(x).shape[-1]
    except RuntimeError as error:
        raise UsageError(
            f"{type(network).__name__} cannot take the inputs of {name}, of shape {tuple(source.shape)}: set its "
            "options in --model.network.init_args (size and channels of Conv4, features of MLP) to them."
        ) from error
    others = {setting.way for setting in settings} - {outputs}
    if source.task == "classification" and others and not getattr(learner, "any_way", False):
        raise UsageError(
            f"{type(network).__name__} has {outputs} outputs, but a task has {min(others)} classes: set its way or "
            "outputs in --model.network.init_args and --data.way, eval_way and eval_settings to the same number, or "
            "take a head for any number of classes."
        )


def check_padding(source: EpisodeSource, settings: Sequence[Setting], learner: LightningModule, training: bool) -> None:
    """Refuse a network that would take padding for examples.

    Raises:
        UsageError: it normalises by the statistics of its batch (also running ones, in ``training``), and tasks are of
            unequal size.
    """
    network = learner.get_submodule("network")
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and (training or not m.track_running_stats)]
    if norms and any(source.padded(setting.shot, setting.query) for setting in settings):
        raise UsageError(
            f"{type(network).__name__} normalises by the statistics of the batch, and would count the padding of the "
            f"unequal tasks of {type(source).__name__}: use another normalisation, such as "
            "--model.network.init_args.norm group."
        )
