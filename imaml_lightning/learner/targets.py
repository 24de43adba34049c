"""Targets as a user has them, brought into the one form of ``Examples``."""

from __future__ import annotations

from torch import Tensor

from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError


def settled(episode: Episode) -> Episode:
    """The episode with targets as ``Examples`` has them, on tensors that autograd accepts (not those of inference mode)."""
    return Episode(*(Examples(*(t.clone() if t.is_inference() else t for t in (x, targets(y)))) for x, y in episode))


def targets(y: Tensor) -> Tensor:
    """Class numbers ``[task, example]`` as int64, of whole numbers ``[task, example, 1]`` or one-hot ``[task, example, way]``;
    or values ``[task, example, output]``, of which a single one may come without its axis.

    Raises:
        UsageError: whole numbers of another form.
    """
    if y.is_floating_point():
        return y.unsqueeze(-1) if y.ndim == 2 else y  # [example] against outputs [example, 1] would broadcast
    if y.ndim == 2:
        return y.long()
    if y.ndim == 3 and y.shape[-1] == 1:
        return y.squeeze(-1).long()
    if y.ndim == 3 and is_one_hot(y):
        return y.long().argmax(-1)
    raise UsageError(
        f"targets of shape {list(y.shape)} are neither class numbers [task, example] nor one-hot: give one class number for "
        "each example, or floats for regression"
    )


def is_one_hot(y: Tensor) -> bool:
    """Whether every row along the last axis holds a single 1 and else 0."""
    return bool(((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all())
