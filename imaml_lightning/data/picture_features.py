"""PictureFeatures: the features of a bank's pictures, each computed once and kept in a file; episodes look them up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.data.augment import Augment
from imaml_lightning.data.bank import BankClass, ClassBank, bank_path
from imaml_lightning.data.class_source import ClassSource, progress
from imaml_lightning.data.sampler import Draft
from imaml_lightning.episode import Episode, Examples

_BLOCK = 64  # pictures described together


class PictureFeatures:
    """What is given in place of pictures where a part of the network never changes.

    Args:
        source: of pictures.
        describe: from pictures ``[example, channel, height, width]``, floats from 0 to 1, to their features ``[example, feature]``.
        key: says all that decides ``describe``: the file of another key is not used.
        augment: how training pictures are changed at random; None leaves them as they are.
        views: of each training picture under ``augment``, of which an episode draws one.
    """

    def __init__(
        self,
        source: ClassSource,
        describe: Callable[[Tensor], Tensor],
        key: Callable[[], str],
        augment: Augment | None = None,
        views: int = 1,
    ) -> None:
        self.source, self._describe, self._key = source, describe, key
        self.augment, self.views = augment, views if augment else 1
        self._features: Tensor | None = None  # [example, view, feature]

    def prepare(self) -> None:
        """Compute what is not yet in the file, with a progress bar; cheap if all is."""
        if self._features is None:
            recipe = self._recipe()
            path = bank_path(self.source.cache, recipe)
            bank = ClassBank.open(path, recipe) or ClassBank.write(path, recipe, self._build())
            self._features = torch.from_numpy(np.array(bank.examples))

    @staticmethod
    def takes(batch: Episode | Draft) -> bool:
        """Whether x are numbers of pictures ``[task, example]``."""
        return (batch.episode if isinstance(batch, Draft) else batch).support.x.ndim == 2

    def looked_up(self, batch: Episode | Draft) -> Episode:
        """The episode of which x are numbers of pictures ``[task, example]``, with features ``[task, example, feature]``."""
        self.prepare()
        assert self._features is not None
        episode, random = batch if isinstance(batch, Draft) else (batch, (None, None))
        features = self._features = self._features.to(episode.support.x.device)
        parts = zip(episode, random, strict=True)
        return Episode(*(Examples(features[e.x, self._view(e.x, numbers)], e.y) for e, numbers in parts))

    def _view(self, x: Tensor, numbers: Tensor | None) -> Tensor:
        """Which view of each example; the first random number of a changed picture says it."""
        return torch.zeros_like(x) if numbers is None else (numbers[..., 0] * self.views).long()

    def _recipe(self) -> dict[str, Any]:
        changed = {"augment": asdict(self.augment), "views": self.views} if self.augment else None
        return {"source": "features", "of": dict(self.source.recipe()), "key": self._key(), "changed": changed}

    def _build(self) -> Iterator[BankClass]:
        bank, rng = self.source.bank, np.random.default_rng(0)
        names = [(split, number) for split, numbers in bank.splits.items() for number in numbers]
        for split, number in progress(names, "Features of each picture, once"):
            pictures = bank.of_class(number)
            views = [
                self._of(pictures, rng if self.augment and split == "train" else None)
                for _ in range(self._count(split))
            ]
            every = np.stack(views, 1)
            yield BankClass(
                split, bank.names[number], every.repeat(self.views // every.shape[1], 1), bank.groups[number]
            )

    def _count(self, split: str) -> int:
        return self.views if split == "train" else 1

    def _of(self, pictures: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Features ``[example, feature]`` of pictures, changed at random where there is a generator."""
        found = []
        for start in range(0, len(pictures), _BLOCK):
            x = torch.from_numpy(pictures[start : start + _BLOCK].astype(np.float32) / 255)
            if rng is not None and self.augment is not None:
                x = self.augment(x[None], self.augment.draw(rng, len(x))[None])[0]
            found.append(self._describe(x).float().cpu().numpy())
        return np.concatenate(found)
