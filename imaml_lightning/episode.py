"""Episode: a batch of few-shot tasks, and the legend of axis names.

Shapes everywhere in this package are written with these names:

======== ==================================================================
task     tasks of a meta-batch (or of a chunk of it), always the first axis
param    entries of the flat vector of adapted parameters, θ or φ
way      classes of a task
shot     support examples of a class
query    query examples of a class
example  examples of a task: way·shot in the support set, way·query in the query set
feature  entries of an input: ``channel height width`` for images
output   entries of a network's output: the way logits, or the regression target
======== ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imaml_lightning.errors import DataError

#: The target of padding where targets are classes, as torch's cross-entropy has it; in regression it is NaN.
IGNORED = -100


def check_pixels(kind: str, ndim: int) -> None:
    """Refuse inputs ``[example, channel, height, width]`` of whole numbers other than uint8: which is white is not known.

    Args:
        kind: the name of their type.
        ndim: of all inputs together, with the axis ``example``.
    """
    if ndim >= 4 and kind not in ("uint8", "bool") and "int" in kind:
        raise DataError(f"images of {kind} do not say which number is white: give uint8, or floats from 0 to 1.")


class Examples(NamedTuple):
    """Inputs ``x [task, example, *feature]`` and targets ``y``.

    ``y`` is ``[task, example]`` (class numbers, int64) or ``[task, example, output]`` (regression).

    Tasks of unequal size are padded at the end with examples whose x is 0 and whose y is ``IGNORED`` (or NaN): losses
    and accuracies are means over the others. The network still sees their x, so one that normalises by the statistics
    of the batch must not be given padding; ``EpisodeDataModule`` refuses it.
    """

    x: Tensor
    y: Tensor

    def real(self) -> Tensor:
        """Which examples are no padding ``[task, example]``."""
        return ~self.y.isnan().any(-1) if self.y.is_floating_point() else self.y != IGNORED


class Episode(NamedTuple):
    """A batch of tasks: what to adapt on (``support``) and what to be judged by (``query``)."""

    support: Examples
    query: Examples

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return self.support.x.shape[0]

    def chunks(self, size: int | None) -> Iterator[Episode]:
        """Consecutive parts of at most ``size`` tasks; all at once for ``None``."""
        size = size or self.tasks
        for start in range(0, self.tasks, size):
            part = slice(start, start + size)
            yield Episode(*(Examples(e.x[part], e.y[part]) for e in self))

    @staticmethod
    def stack(episodes: list[Episode]) -> Episode:
        """One Episode from several, joined along ``task``."""
        support, query = zip(*episodes, strict=True)
        return Episode(
            Examples(torch.cat([e.x for e in support]), torch.cat([e.y for e in support])),
            Examples(torch.cat([e.x for e in query]), torch.cat([e.y for e in query])),
        )


def as_float(episode: Episode) -> Episode:
    """uint8 images as float32 from 0 to 1; anything else unchanged."""
    return Episode(*(Examples(e.x.float() / 255 if e.x.dtype == torch.uint8 else e.x, e.y) for e in episode))
