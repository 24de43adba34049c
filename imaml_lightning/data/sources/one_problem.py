"""OneProblem: a class source as one classification problem of many classes, in small batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from imaml_lightning.data.base import EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError, check_at_least


class OneProblem(EpisodeSource):
    """The first ``way`` training classes of a source, always with the same labels.

    Of each class the last ``held_out`` examples are for test, as many before them for validation. ``shot`` and ``query``
    count examples of the whole problem, drawn at random with replacement: the support set from the training examples,
    the query set from those of validation, in test from those of test. So in training the query loss is a
    validation loss, on which hyper-parameters may be learned.

    Args:
        source: of classes, such as Omniglot.
        held_out: examples of each class for validation, and as many for test.
    """

    task: Literal["classification", "regression"] = "classification"

    def __init__(self, source: ClassSource, held_out: int = 3) -> None:
        check_at_least(1, "source", held_out=held_out)
        self.source, self.held_out = source, held_out

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    def prepare(self) -> None:
        self.source.prepare()

    def setup(self) -> None:
        self.source.setup()

    def reading(self) -> dict[str, Any]:
        return self.source.reading()

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        members = self.source.bank.splits["train"]
        if way > len(members):
            raise UsageError(f"--data.way {way} asks for more classes than there are for training, {len(members)}.")
        least = np.diff(self.source.bank.starts)[members.start : members.start + way].min()
        if least <= 2 * self.held_out:
            raise UsageError(f"--data.source.held_out {self.held_out} leaves nothing of {least} examples: lower it.")

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        bank, first = self.source.bank, self.source.bank.splits["train"].start
        starts, counts = bank.starts[first:-1], np.diff(bank.starts)[first:]

        def draw(rng: np.random.Generator, number: int, part: Split) -> tuple[np.ndarray, np.ndarray]:
            y = rng.integers(way, size=number)
            training = counts[y] - 2 * self.held_out
            if part == "train":
                return starts[y] + rng.integers(training), y
            held = rng.integers(self.held_out, size=number) + (self.held_out if part == "test" else 0)
            return starts[y] + training + held, y

        asked: Split = "test" if split == "test" else "val"
        drawn = [(draw(rng, shot, "train"), draw(rng, query, asked)) for rng in rngs]
        sets = ([pair[part] for pair in drawn] for part in (0, 1))
        return Episode(
            *(
                Examples(
                    torch.from_numpy(bank.examples[np.stack([numbers for numbers, _ in each])]),
                    torch.from_numpy(np.stack([y for _, y in each])),
                )
                for each in sets
            )
        )
