"""EpisodeSource: where tasks come from. The seam that every data set implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from imaml_lightning.episode import Episode

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
USUAL_WAY = 5


class EpisodeSource(ABC):
    """A distribution of few-shot tasks, one for each split.

    The life of a source: constructed without touching anything, ``prepare()`` once by one process,
    ``setup()`` by every process, ``check(...)`` for the episodes wanted, then ``sample(...)`` at will.
    A source holds no random state: all randomness comes from the generators it is given.
    """

    #: What the targets are: class numbers, or real vectors.
    task: Literal["classification", "regression"]
    #: Shape of one input, ``(channel, height, width)`` or ``(feature,)``; known before ``prepare``.
    shape: tuple[int, ...]

    def prepare(self) -> None:  # noqa: B027 (a source with nothing on disk needs neither)
        """Put what is needed on disk: download, build a bank. One process calls it.

        Raises:
            UsageError: what the user must provide is missing or damaged.
        """

    def setup(self) -> None:  # noqa: B027
        """Open what ``prepare`` made. Every process calls it; a second call does nothing."""

    def check(self, split: Split, way: int, shot: int, query: int) -> None:  # noqa: B027
        """Raise UsageError if ``split`` cannot give such episodes. Called after ``setup``."""

    def usual_way(self) -> int:
        """Classes of a task unless somebody asks for another number. Called after ``setup``."""
        return USUAL_WAY

    def padded(self, shot: int, query: int) -> bool:
        """Whether some task is smaller than asked for, so that it is padded (see :class:`Examples`)."""
        return False

    def reading(self) -> dict[str, Any]:
        """How raw input becomes numbers, in plain types: kept in checkpoints, so that ``predict`` reads alike."""
        return {}

    def sample_numbered(
        self, split: Split, numbers: Sequence[int], rngs: Sequence[np.random.Generator], way: int, shot: int, query: int
    ) -> Episode:
        """As ``sample``, told the episodes' numbers: for splits whose tasks are a fixed list."""
        return self.sample(split, rngs, way, shot, query)

    @abstractmethod
    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        """Draw one task from each generator.

        A task depends on its own generator alone, never on its neighbours.

        Returns:
            Episode with ``len(rngs)`` tasks. Classification: x ``[task, way·shot, channel, height, width]``
            uint8 (ink = 255), y ``[task, way·shot]`` int64 class numbers from 0 to way − 1, class by class;
            the query set alike. Regression: float32 x ``[task, shot, feature]``, y ``[task, shot, output]``;
            ``way`` has no meaning there.
        """
