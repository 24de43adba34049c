"""Backbone: the features of a pretrained network, and a head for any number of classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models.bodies import Described, described, leave_out_layer, named_body
from imaml_lightning.models.heads import AnyWay, UnitLength
from imaml_lightning.models.weights import follow, load_weights

Neck = Literal["none", "norm", "linear"]


class Backbone(nn.Module):
    """z_c = w_cᵀ u, u = n / ‖n‖, n = neck(b(x)): a body b from pictures to features, a neck, and an ``AnyWay`` head.

    With ``adapt=["head.weight"]`` the body and the neck are shared by all tasks. Of a frozen body each picture's features can
    be computed once for a whole training (``callbacks.FeatureBank``): then the network is given features for pictures.

    Args:
        name: of a timm model, or ``torchvision/`` and the name of a torchvision model.
        body: a module of yours in place of a name, from pictures ``[example, channel, height, width]`` to features.
        weights: a .safetensors file or a state_dict; or ``pretrained``, which timm or torchvision downloads. Without, a named
            body is trained from scratch.
        frozen: the body keeps its weights, and is in evaluation mode in training too. None: where it has ``weights``.
        without: name of the body's last layer where it gives classes, such as fc; what enters it are the features.
        part: which of its outputs are the features, where it returns several: a number of a tuple, a key of a dict.
        pixels: height and width in which the body sees pictures; others are resized. None: its own, which a named one knows.
        body_channels: colours that it takes: 1 or 3. Pictures of the other kind are made grey, or repeated.
        mean, deviation: of each of its colours, from 0 to 1. None: its own, or 0 and 1 for a module of yours.
        neck: ``norm`` brings each feature to mean 0 and deviation 1 over the training pictures (batch normalisation),
            ``linear`` also multiplies them by a meta-learned matrix that starts at the identity, ``none`` leaves them.

    Raises:
        UsageError: there is no such model or package, the weights are not of it, or it does not give one vector a picture.
    """

    def __init__(
        self,
        name: str | None = None,
        body: nn.Module | None = None,
        weights: str | None = None,
        frozen: bool | None = None,
        without: str | None = None,
        part: int | str | None = None,
        pixels: int | None = None,
        body_channels: Literal[1, 3] = 3,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        neck: Neck = "norm",
    ) -> None:
        super().__init__()
        if (name is None) == (body is None):
            raise UsageError(
                "a Backbone has a name or a body: set one of --model.network.name and --model.network.body"
            )
        own = named_body(name, weights == "pretrained" and not follow(), body_channels) if name else described(body)
        if without:
            leave_out_layer(own.body, without)
        if body is not None and weights == "pretrained":
            raise UsageError("a body of yours has no weights to download: give a file by --model.network.weights")
        if weights is not None and weights != "pretrained" and not follow():
            load_weights(own.body, weights)
        if name and frozen and weights is None:
            raise UsageError(f"a frozen {name} without weights is random: give --model.network.weights")
        if name and weights is None and not follow():
            warnings.warn(
                f"the body {name} has no weights and is trained from scratch: give pretrained ones by --model.network.weights",
                stacklevel=2,
            )
        self.frozen = weights is not None if frozen is None else frozen
        self.body = _Body(own, self.frozen, part, pixels, body_channels, mean, deviation)
        features = self.body.features
        self.neck = nn.Sequential(
            *([nn.BatchNorm1d(features)] if neck != "none" else []),
            *([_identity(features)] if neck == "linear" else []),
        )
        self.embedding = UnitLength()
        self.head = AnyWay(features)

    def chain(self) -> list[nn.Module]:
        """What ``forward`` applies, one after the other: here the network can be cut."""
        return [self.body, self.neck, self.embedding, self.head]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[example, way]`` of pictures ``[example, channel, height, width]`` from 0 to 1, or of the body's features
        ``[example, feature]``."""
        return self.head(self.embedding(self.neck(self.body(x))))


class _Body(nn.Module):
    """Pictures as the body knows them, its features, and their mean over places; features pass through."""

    def __init__(
        self,
        own: Described,
        frozen: bool,
        part: int | str | None,
        pixels: int | None,
        channels: int,
        mean: Sequence[float] | None,
        deviation: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.network, self.part, self.frozen, self.channels = own.body, part, frozen, channels
        if not (pixels or own.pixels):
            raise UsageError(
                f"{type(own.body).__name__} does not say in which size it takes pictures: set --model.network.pixels"
            )
        self.pixels: int = pixels or own.pixels or 0
        for buffer, given, usual in (("mean", mean, own.mean), ("deviation", deviation, own.deviation)):
            values = torch.tensor([*(given or usual)])
            if len(values) not in (1, channels):
                raise UsageError(
                    f"{buffer} has {len(values)} numbers and a picture {channels} colours: give one for each"
                )
            self.register_buffer(buffer, values.view(-1, 1, 1))
        self.mean: Tensor
        self.deviation: Tensor
        if frozen:
            self.network.requires_grad_(False)
        with torch.no_grad(), _evaluating(self.network):
            self.features = self(torch.zeros(1, channels, self.pixels, self.pixels)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """``[example, feature]``."""
        if x.ndim == 2:
            return x
        # Not by train(), since Lightning warns of parts that are in evaluation mode when a training begins.
        with _evaluating(self.network) if self.frozen else nullcontext():
            return self._vector(self.network(self.picture(x)))

    def picture(self, x: Tensor) -> Tensor:
        """``x [example, channel, height, width]``, from 0 to 1, in the body's colours and size, less its mean, by its deviation."""
        if x.shape[1] != self.channels:
            x = x.mean(1, keepdim=True) if self.channels == 1 else x.expand(-1, self.channels, -1, -1)
        if x.shape[2:] != (self.pixels, self.pixels):
            x = nn.functional.interpolate(x, (self.pixels, self.pixels), mode="bilinear", antialias=True)
        return (x - self.mean) / self.deviation

    def _vector(self, output: object) -> Tensor:
        name = type(self.network).__name__
        if self.part is not None:
            try:
                output = output[self.part]  # type: ignore[index]
            except (KeyError, IndexError, TypeError) as error:
                raise UsageError(
                    f"{name} returns a {type(output).__name__} without a part {self.part!r}: correct --model.network.part"
                ) from error
        if not isinstance(output, Tensor):
            parts = (
                list(output) if isinstance(output, dict) else range(len(output)) if isinstance(output, tuple) else []
            )
            choice = f"say which part, one of {', '.join(map(str, parts))}, by --model.network.part"
            raise UsageError(
                f"{name} returns a {type(output).__name__}: {choice if parts else 'let it return a tensor'}"
            )
        if output.ndim == 4:
            output = output.mean((2, 3))
        if output.ndim != 2:
            raise UsageError(
                f"{name} gives features of shape {tuple(output.shape)} for one picture: let it give one vector [example, feature], "
                "or a map [example, feature, height, width], whose mean is taken"
            )
        return output


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Within it the network is in evaluation mode, and after it every module in the one that it had."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _identity(features: int) -> nn.Linear:
    layer = nn.Linear(features, features, bias=False)
    nn.init.eye_(layer.weight)
    return layer
