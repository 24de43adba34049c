"""ClassSource: few-shot classification from a class bank."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from imaml_lightning.data.bank import BankClass, ClassBank, Recipe, bank_path
from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError

T = TypeVar("T")
_FEW = 100  # examples of a class up to which shuffling them all is the faster way to draw some


class ClassSource(EpisodeSource):
    """A data set of classes that is read once into a :class:`ClassBank`.

    A subclass says what decides its content (``recipe``) and how to make it (``build``).

    Args:
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
        within_groups: draw the classes of a task from one group (alphabet, site); each group that has enough
            classes is equally likely.
    """

    task: Literal["classification", "regression"] = "classification"
    #: Images are of drawings: ink is 255, paper 0. Photographs are left as they are.
    ink: bool = False

    def __init__(self, cache: str | None = None, within_groups: bool = False) -> None:
        self.cache, self.within_groups = cache, within_groups
        self._bank: ClassBank | None = None

    @abstractmethod
    def recipe(self) -> Recipe:
        """All that decides the content of the bank; ``source`` is its name. Cheap: every process asks."""

    @abstractmethod
    def build(self) -> Iterable[BankClass]:
        """The classes, split by split: uint8 images ``[example, channel, height, width]``, or float32 features."""

    def prepare(self) -> None:
        recipe = self.recipe()
        path = bank_path(self.cache, recipe)
        self._bank = ClassBank.open(path, recipe) or ClassBank.write(path, recipe, self.build())

    def setup(self) -> None:
        # Another machine's rank 0 may have prepared a folder that this one does not share.
        if self._bank is None:
            self.prepare()

    @property
    def bank(self) -> ClassBank:
        """The open bank, prepared first if need be."""
        if self._bank is None:
            self.setup()
        assert self._bank is not None
        return self._bank

    def reading(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "ink": self.ink}

    def usual_way(self) -> int:
        fewest = min(self._most_classes(split) for split in SPLITS)
        return max(2, min(super().usual_way(), fewest))

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        source, members = type(self).__name__, self.bank.splits.get(split, range(0))
        classes = self._most_classes(split)
        if way > classes:
            has = f"an alphabet or other group of {source}" if self.within_groups else source
            option = "" if split == "train" else " (or eval_way)"
            raise UsageError(
                f"--data.way {way}{option} asks for more classes than {has} has for {split}, "
                f"{classes}; choose at most {classes}."
            )
        counts = self.bank.counts[members.start : members.stop]
        if shot + query > counts.min():
            name = self.bank.names[members[int(counts.argmin())]]
            option, lower = "", "--data.shot or --data.query"
            if split != "train":
                option, lower = " (or eval_shot)", "--data.eval_shot or --data.eval_query"
            if hasattr(self, "min_examples"):
                lower += f", or leave such classes out by --data.source.min_examples {shot + query}"
            raise UsageError(
                f"--data.shot {shot}{option} plus {query} query examples ({split}) is more than the {counts.min()} that "
                f"class {name} of {source} has; lower {lower}, or give it more."
            )

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        return self._looked_up(self.numbers(split, rngs, way, shot, query))

    def sample_numbered(
        self, split: Split, numbers: Sequence[int], rngs: Sequence[np.random.Generator], way: int, shot: int, query: int
    ) -> Episode:
        return self._looked_up(self.numbers(split, rngs, way, shot, query, numbers))

    def _looked_up(self, numbers: Episode) -> Episode:
        return Episode(*(Examples(torch.from_numpy(self.bank.examples[e.x.numpy()]), e.y) for e in numbers))

    def numbers(
        self,
        split: Split,
        rngs: Sequence[np.random.Generator],
        way: int,
        shot: int,
        query: int,
        episodes: Sequence[int] | None = None,
    ) -> Episode:
        """As ``sample``, but x holds the examples' numbers in the bank, ``[task, way·shot]`` and ``[task, way·query]``.

        ``episodes`` are the episodes' own numbers, for a source whose tasks are a fixed list.
        """
        pools, each = self._pools(split, way), shot + query
        starts, counts = self.bank.starts, self.bank.counts
        most = int(counts.max())
        unequal = counts.min() < most
        chosen = np.empty((len(rngs), way, each), np.intp)
        for task, rng in enumerate(rngs):
            pool = pools[0] if len(pools) == 1 else pools[rng.integers(len(pools))]
            # The order in which classes are drawn is the order of their labels.
            classes = pool[rng.choice(len(pool), way, replace=False)]
            if most <= _FEW:
                # Distinct examples of a class: the places of the smallest of as many random numbers.
                keys = rng.random((way, most))
                if unequal:
                    keys[np.arange(most) >= counts[classes, None]] = np.inf
                chosen[task] = keys.argsort(axis=1)[:, :each]
            else:
                for row, count in zip(chosen[task], counts[classes], strict=True):
                    row[:] = rng.choice(count, each, replace=False)
            chosen[task] += starts[classes, None]
        y = torch.arange(way).repeat(len(rngs), 1)
        parts = (chosen[:, :, :shot], shot), (chosen[:, :, shot:], query)
        return Episode(
            *(Examples(torch.from_numpy(x.reshape(len(rngs), -1)), y.repeat_interleave(n, 1)) for x, n in parts)
        )

    def _most_classes(self, split: Split) -> int:
        """How many classes a task may have at most."""
        return max((len(pool) for pool in self._pools(split, 1)), default=0)

    def _pools(self, split: Split, way: int) -> list[np.ndarray]:
        """The sets of at least ``way`` classes from which a task may take its classes."""
        return _pools(self.bank, split, way, self.within_groups)


@lru_cache(maxsize=64)
def _pools(bank: ClassBank, split: Split, way: int, within_groups: bool) -> list[np.ndarray]:
    members = np.array(bank.splits.get(split, range(0)), np.intp)
    if not within_groups:
        pools = [members]
    else:
        groups = np.array(bank.groups)[members]
        pools = [members[groups == group] for group in dict.fromkeys(groups.tolist())]
    return [pool for pool in pools if len(pool) >= way]


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """``items`` with a progress bar on a terminal's standard error; silent elsewhere."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, disable=not console.is_terminal, transient=True)
