"""ClassSource: few-shot classification from a class bank."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from imaml_lightning.data.bank import ClassBank, Recipe, bank_path
from imaml_lightning.data.base import EpisodeSource, Split
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError

T = TypeVar("T")


class ClassSource(EpisodeSource):
    """A data set of classes that is read once into a :class:`ClassBank`.

    A subclass says what decides its content (``recipe``) and how to make it (``build``).

    Args:
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    task: ClassVar[Literal["classification", "regression"]] = "classification"

    def __init__(self, cache: str | None = None) -> None:
        self.cache = cache
        self._bank: ClassBank | None = None

    @abstractmethod
    def recipe(self) -> Recipe:
        """All that decides the content of the bank; ``source`` is its name. Cheap: every process asks."""

    @abstractmethod
    def build(self) -> Mapping[Split, tuple[list[str], np.ndarray]]:
        """Split -> (class names, images ``[class, image, channel, height, width]`` uint8, ink = 255)."""

    def prepare(self) -> None:
        recipe = self.recipe()
        path = bank_path(self.cache, recipe)
        self._bank = ClassBank.open(path, recipe) or ClassBank.write(path, recipe, self.build())

    def setup(self) -> None:
        if self._bank is None:
            recipe = self.recipe()
            # Another machine's rank 0 may have prepared a folder that this one does not share.
            self._bank = ClassBank.open(bank_path(self.cache, recipe), recipe)
        if self._bank is None:
            self.prepare()

    @property
    def bank(self) -> ClassBank:
        """The open bank, prepared first if need be."""
        if self._bank is None:
            self.setup()
        assert self._bank is not None
        return self._bank

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        classes, images = len(self.bank.splits[split]), self.bank.images.shape[1]
        source = type(self).__name__
        if way > classes:
            raise UsageError(
                f"--data.way {way} asks for more classes than {source} has for {split}, "
                f"{classes}; choose at most {classes}."
            )
        if shot + query > images:
            raise UsageError(
                f"--data.shot {shot} plus {query} query images ({split}) is more than the {images} images that a "
                f"class of {source} has; lower --data.shot, --data.query or --data.eval_query."
            )

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        images, members = self.bank.images, self.bank.splits[split]
        classes = np.empty((len(rngs), way, 1), np.intp)
        drawings = np.empty((len(rngs), way, shot + query), np.intp)
        for task, rng in enumerate(rngs):
            # The order in which classes are drawn is the order of their labels.
            classes[task, :, 0] = rng.choice(len(members), way, replace=False)
            # Distinct images of a class: the places of the smallest of as many random numbers.
            drawings[task] = rng.random((way, images.shape[1])).argsort(axis=1)[:, : shot + query]
        classes += members.start
        return Episode(
            _examples(images, classes, drawings[:, :, :shot]),
            _examples(images, classes, drawings[:, :, shot:]),
        )


def _examples(images: np.ndarray, classes: np.ndarray, drawings: np.ndarray) -> Examples:
    """Gather ``images[classes [task, way, 1], drawings [task, way, n]]``, joining way and n."""
    tasks, way, each = drawings.shape
    x = torch.from_numpy(images[classes, drawings]).flatten(1, 2)
    y = torch.arange(way).repeat_interleave(each).repeat(tasks, 1)
    return Examples(x, y)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """``items`` with a progress bar on a terminal's standard error; silent elsewhere."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, disable=not console.is_terminal, transient=True)
