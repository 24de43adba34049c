"""Several tasks from the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError


def folded(episode: Episode, folds: int) -> Episode:
    """Each task ``folds`` times, with other images of each class for its support set.

    Of a class's shot + query images, in the order support, query, fold f has those from number f · shot on for its support
    set and all others for its query set; fold 0 is the episode itself. Where features are computed once for an image, this
    is more meta-gradient for the price of the heads' solves.

    Args:
        episode: with class numbers for targets, equally many of each class.
        folds: at most so many that no image is in two support sets, (shot + query) / shot.

    Raises:
        UsageError: there are not so many, or the targets are no class numbers or unequal in number.
    """
    if folds == 1:
        return episode
    support, query = episode
    y = torch.cat([support.y, query.y], 1)
    shot, every = (_of_each_class(part) for part in (support.y, y))
    if folds * shot > every:
        raise UsageError(
            f"{folds} folds need {folds} x {shot} images of each class, got {every}: set --model.folds lower"
        )
    x = torch.cat([support.x, query.x], 1)
    order = torch.sort(y, dim=1, stable=True).indices.unflatten(1, (-1, every))  # [task, class, image]
    parts = []
    for fold in range(folds):
        turned = order.roll(-fold * shot, 2)
        parts.append(Episode(_chosen(x, y, turned[..., :shot]), _chosen(x, y, turned[..., shot:])))
    return Episode.stack(parts)


def _of_each_class(y: Tensor) -> int:
    """How many examples each class has in each task."""
    if y.is_floating_point():
        raise UsageError("folds need classes for targets: leave out --model.folds")
    counts = torch.stack([(y == label).sum(1) for label in range(int(y.max()) + 1)])
    if (counts != counts[0, 0]).any():
        raise UsageError("folds need equally many examples of each class: leave out --model.folds")
    return int(counts[0, 0])


def _chosen(x: Tensor, y: Tensor, places: Tensor) -> Examples:
    """The examples at ``places [task, class, image]``."""
    flat = places.transpose(1, 2).flatten(1)
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    return Examples(x[rows, flat], y[rows, flat])
