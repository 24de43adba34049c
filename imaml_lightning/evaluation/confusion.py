"""Which classes a learner takes for one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.data import ClassSource, Split
from imaml_lightning.episode import Episode, Examples, as_float
from imaml_lightning.evaluation.protocols import CHUNK
from imaml_lightning.learner.meta_learner import MetaLearner


def confusion(
    learner: MetaLearner,
    source: ClassSource,
    classes: Sequence[int],
    way: int = 5,
    shot: int = 1,
    query: int = 5,
    episodes: int = 100,
    seed: int = 0,
) -> Tensor:
    """How often a query image of each class was taken for each class, ``[true, predicted]``, as shares of the episodes
    in which both stood to choose; not a number where they never did.

    Args:
        learner: with a head for ``way`` classes.
        source: of images.
        classes: numbers in ``source.bank``, of one alphabet for instance; episodes are drawn from these alone.
        way: classes of an episode.
        shot: support examples of each class.
        query: query examples of each class.
        episodes: how many.
        seed: of the episodes.
    """
    rng = np.random.default_rng(seed)
    places = np.stack([rng.choice(len(classes), way, replace=False) for _ in range(episodes)])
    drawn = np.stack([_draw(source, [classes[place] for place in row], shot + query, rng) for row in places])
    taken, asked = torch.zeros(2, len(classes), len(classes), dtype=torch.float64)
    for first in range(0, episodes, CHUNK):
        chunk = places[first : first + CHUNK]
        x = torch.from_numpy(drawn[first : first + CHUNK])
        support, asking = (part.flatten(1, 2) for part in x.split([shot, query], dim=2))
        y = [torch.arange(way).repeat_interleave(n).repeat(len(chunk), 1) for n in (shot, query)]
        guesses = learner.outputs(as_float(Episode(Examples(support, y[0]), Examples(asking, y[1]))))[1].argmax(-1)
        for row, guess in zip(torch.from_numpy(chunk), guesses, strict=True):
            asked[row[:, None], row] += query
            taken.index_put_((row[y[1][0]], row[guess]), torch.ones(way * query, dtype=torch.float64), accumulate=True)
    return taken / asked


def _draw(source: ClassSource, classes: Sequence[int], each: int, rng: np.random.Generator) -> np.ndarray:
    """``each`` distinct examples of every class, ``[way, each, *feature]``."""
    pools = [source.bank.of_class(number) for number in classes]
    return np.stack([pool[rng.permutation(len(pool))[:each]] for pool in pools])


def classes_by_group(source: ClassSource, split: Split) -> dict[str, list[int]]:
    """Class numbers of a split by the alphabet, patient or other group that they belong to."""
    groups: dict[str, list[int]] = {}
    for number in source.bank.splits[split]:
        groups.setdefault(source.bank.groups[number], []).append(number)
    return groups
