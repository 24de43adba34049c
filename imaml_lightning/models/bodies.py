"""Bodies by their names in timm and torchvision, with what these know of them, and modules of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from imaml_lightning.errors import UsageError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of torchvision's weights
_CLASSIFIERS = ("fc", "classifier", "heads", "head")  # torchvision's names for a network's last part


class Described(NamedTuple):
    """A network that gives features, and how it takes pictures."""

    body: nn.Module
    pixels: int | None
    mean: Sequence[float]
    deviation: Sequence[float]


def named_body(name: str, pretrained: bool, channels: int) -> Described:
    """A model of timm, or of torchvision by ``torchvision/name``.

    Raises:
        UsageError: there is no such model or package, or its weights cannot be had.
    """
    try:
        of = name.removeprefix("torchvision/")
        return _torchvision(of, pretrained, channels) if of != name else _timm(name, pretrained, channels)
    except UsageError:
        raise
    except Exception as error:  # a download fails in many ways
        said = " ".join(str(error).split())[:200]
        remedy = f"the weights of {name} cannot be had ({said}): give a file by --model.network.weights"
        raise UsageError(remedy if pretrained else f"{name} cannot be built ({said}): choose another one") from error


def own_pixels(name: str) -> int | None:
    """In which size a named body takes pictures, without building it; None where that is not known."""
    if name.startswith("torchvision/"):
        return 224
    try:
        import timm
    except ImportError:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return config.input_size[-1] if config else None


def described(body: nn.Module | None) -> Described:
    """A module of one's own, of which nothing is known."""
    assert body is not None
    return Described(body, None, (0.0,), (1.0,))


def leave_out_layer(body: nn.Module, last: str) -> None:
    """Put an identity in the place of one of its layers.

    Raises:
        UsageError: there is no such layer.
    """
    owner, _, name = last.rpartition(".")
    try:
        body.get_submodule(last)
        setattr(body.get_submodule(owner), name, nn.Identity())
    except AttributeError as error:
        raise UsageError(f"{type(body).__name__} has no layer {last}: correct --model.network.without") from error


def _timm(name: str, pretrained: bool, channels: int) -> Described:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"the body {name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 1)
        raise UsageError(f"timm has no {name}{f', did you mean {near[0]}' if near else ''}: see timm.list_models()")
    body: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels)
    config = body.pretrained_cfg
    mean, deviation = ([*config[key]] for key in ("mean", "std"))
    if channels == 1:
        mean, deviation = ([sum(values) / len(values)] for values in (mean, deviation))
    return Described(body, config["input_size"][-1], mean, deviation)


def _torchvision(name: str, pretrained: bool, channels: int) -> Described:
    from torchvision import models

    if name not in models.list_models(models):
        near = get_close_matches(name, models.list_models(models), 1)
        raise UsageError(
            f"torchvision has no {name}{f', did you mean {near[0]}' if near else ''}: see torchvision.models"
        )
    if channels != 3:
        raise UsageError(f"torchvision's {name} takes 3 colours: leave out --model.network.body_channels")
    body = models.get_model(name, weights="DEFAULT" if pretrained else None)
    last = next((part for part in _CLASSIFIERS if hasattr(body, part)), None)
    if last is None:
        raise UsageError(f"torchvision's {name} has no last layer of a known name: give it as --model.network.body")
    leave_out_layer(body, last)
    return Described(body, 224, *_IMAGENET)
