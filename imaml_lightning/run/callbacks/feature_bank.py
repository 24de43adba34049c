"""FeatureBank: with a frozen body each picture passes it once, and episodes are look-ups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from imaml_lightning.data import ClassSource, EpisodeDataModule
from imaml_lightning.data.picture_features import PictureFeatures
from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.models import Backbone


class FeatureBank(Callback):
    """Gives the network features in place of pictures, computed once and kept in a file beside the bank of pictures.

    The command line uses it of itself where a ``Backbone`` is frozen. The file's name holds a hash of the body's weights and
    of how it takes pictures, and of the pictures.

    Args:
        views: of each training picture under ``--data.augment``: so many changed ones pass the body, and each episode draws
            one. Costs so many times the pass.

    Raises:
        UsageError: the network has no frozen body, or the data are no pictures in a bank.
    """

    def __init__(self, views: int = 4) -> None:
        check_at_least(1, "trainer.callbacks", views=views)
        self.views = views

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: EpisodeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not can_keep(pl_module, data):
            raise UsageError(
                "a FeatureBank needs a frozen Backbone and a source of pictures: leave it out of the callbacks"
            )
        if data.features is None:
            data.features = keep_features(pl_module, data, self.views)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first rank of each machine computes, others read its file."""
        data: EpisodeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert data.features is not None
        if trainer.local_rank == 0:
            data.features.prepare()
        trainer.strategy.barrier()
        data.features.prepare()

    on_validation_start = on_test_start = on_predict_start = on_fit_start


def feature_bank(learner: LightningModule, data: EpisodeDataModule, callbacks: Sequence[Callback]) -> list[Callback]:
    """The callback, where it can be of use and is not there yet."""
    there = any(isinstance(callback, FeatureBank) for callback in callbacks)
    return [FeatureBank()] if can_keep(learner, data) and not there else []


def can_keep(learner: LightningModule, data: EpisodeDataModule) -> bool:
    """Whether pictures pass a part of the network that never changes."""
    network = learner.get_submodule("network")
    return (
        isinstance(network, Backbone)
        and network.frozen
        and isinstance(data.source, ClassSource)
        and len(data.source.shape) == 3
    )


def keep_features(learner: LightningModule, data: EpisodeDataModule, views: int = 4) -> PictureFeatures:
    """The features of the pictures of ``data`` by the frozen body of a learner."""
    network = learner.get_submodule("network")
    assert isinstance(network, Backbone)
    assert isinstance(data.source, ClassSource)

    def describe(x: Tensor) -> Tensor:
        with torch.no_grad():
            return network.body(x.to(network.body.mean.device))

    return PictureFeatures(data.source, describe, lambda: body_key(network), data.augment, views)


def body_key(network: Backbone) -> str:
    """A hash of the body's weights, of its layers and of how it takes pictures."""
    body = network.body
    digest = hashlib.sha256(f"{body} {body.part} {body.pixels} {body.channels}".encode())
    for name, tensor in body.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
