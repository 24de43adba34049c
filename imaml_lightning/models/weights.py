"""Weights of a file, read without executing anything, for a network whose names for them stand somewhere in the file's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError

_follow: ContextVar[bool] = ContextVar("weights follow", default=False)


@contextmanager
def weights_follow(do: bool = True) -> Iterator[None]:
    """Within it networks are built to be given the weights of a checkpoint: those that they began with are not looked for."""
    token = _follow.set(do)
    try:
        yield
    finally:
        _follow.reset(token)


def follow() -> bool:
    """Whether weights come from a checkpoint, after the network is built."""
    return _follow.get()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that ``torch.save`` wrote (a state_dict, or a dict that has one).

    Raises:
        UsageError: the file is missing, damaged, or holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist: give the path of a .safetensors file or of a state_dict")
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a damaged file leads its readers to errors of any kind
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"weights {path} cannot be read ({said}): give a .safetensors file or a state_dict") from error
    while isinstance(content, dict) and (
        inner := [k for k in ("state_dict", "model") if isinstance(content.get(k), dict)]
    ):
        content = content[inner[0]]
    found = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    )
    if not found:
        raise UsageError(f"weights {path} hold no tensors by names: give a .safetensors file or a state_dict")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(f"{path} needs a package: pip install safetensors") from error
    return load_file(path)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Give ``network`` the weights of a file. Names may all have one prefix there, as ``network.body.`` in a checkpoint of ours.

    Raises:
        UsageError: the file lacks some of the network's tensors, or has them in other shapes.
    """
    theirs, ours = read_weights(path), network.state_dict()
    counts = {key for key in ours if key.endswith("num_batches_tracked")}  # older files have none
    first = next((key for key in ours if key not in counts), None)
    if first is None:
        raise UsageError(f"{type(network).__name__} has no weights: leave out --model.network.weights")
    prefixes = [key.removesuffix(first) for key in theirs if key == first or key.endswith(f".{first}")]
    lacks = {prefix: [key for key in ours.keys() - counts if f"{prefix}{key}" not in theirs] for prefix in prefixes}
    prefix = min(lacks, key=lambda one: len(lacks[one]), default="")
    missing = sorted(lacks.get(prefix, ours))
    name = type(network).__name__
    if missing:
        raise UsageError(
            f"weights {path} are of another network than {name}: of its {len(ours)} tensors they lack {len(missing)}, such as "
            f"{missing[0]}; give the name or the options of the network that they are of"
        )
    state = {key: theirs.get(f"{prefix}{key}", ours[key]) for key in ours}
    for key, value in state.items():
        if value.shape != ours[key].shape:
            raise UsageError(
                f"weights {path} have {key} in shape {tuple(value.shape)}, {name} in {tuple(ours[key].shape)}: give the options "
                "of the network that they are of"
            )
    network.load_state_dict(state)
    unused = [key for key in theirs if key not in {f"{prefix}{own}" for own in ours}]
    if unused and len(unused) > len(ours):
        warnings.warn(
            f"{len(unused)} of the {len(theirs)} tensors in {path} are not of {name}, and not used", stacklevel=2
        )
