"""Which episodes make which batch, and the loader that draws them.

Episode i of epoch e of a split is drawn by a generator seeded with (seed, split, e, i) and with nothing else. So
neither the number of workers, nor of ranks, nor a resume, changes it. Where the shot is drawn as well, all episodes of a
batch have that of the batch, drawn by a generator of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imaml_lightning.data.augment import Augment
from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.setting import Setting
from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError

#: (epoch, numbers of the episodes in it)
Batch = tuple[int, Sequence[int]]


class Draft(NamedTuple):
    """An Episode to be augmented on the device, by ``random [task, example, number]`` for support and query."""

    episode: Episode
    random: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EpisodeDataset(Dataset[Episode | Draft]):
    """The episodes of one split: a pure function from (epoch, episode numbers) to an Episode.

    ``tasks`` is the number of a batch over all ranks, which share its shot. With ``by_number``, x holds the numbers of
    bank examples, to be looked up on the device.
    """

    source: EpisodeSource
    split: Split
    seed: int
    setting: Setting
    tasks: int
    augment: Augment | None = None
    by_number: bool = False

    def __getitem__(self, batch: Batch) -> Episode | Draft:
        epoch, numbers = batch
        split = SPLITS.index(self.split)
        rngs = [np.random.default_rng((self.seed, split, epoch, number)) for number in numbers]
        sizes = self.setting.way, self._shot(epoch, numbers), self.setting.query
        if self.by_number:
            assert isinstance(self.source, ClassSource)
            episode = self.source.numbers(self.split, rngs, *sizes, numbers)
        else:
            episode = self.source.sample_numbered(self.split, numbers, rngs, *sizes)
        if self.augment is None:
            return episode
        draws = [[self.augment.draw(rng, part.x.shape[1]) for part in episode] for rng in rngs]
        support, query = zip(*draws, strict=True)
        return Draft(episode, (torch.stack(support), torch.stack(query)))

    def _shot(self, epoch: int, numbers: Sequence[int]) -> int:
        shots = self.setting.shots
        if len(shots) == 1:
            return shots[0]
        batches = {number // self.tasks for number in numbers}
        if len(batches) > 1:
            raise UsageError(
                f"episodes {numbers[0]} to {numbers[-1]} of {self.split} lie in several batches of {self.tasks}, each of "
                "which draws its own shot: ask for those of one batch, or set --data.shot to a number"
            )
        # A fifth number keeps this generator apart from those of episodes.
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), epoch, *batches, 1))
        return int(rng.choice(shots))


@dataclass(frozen=True)
class BatchSampler:
    """One rank's part of every batch.

    Batch t holds the episodes from (t mod batches)·tasks on, of epoch t div batches; rank r of R takes the r-th
    of R equal slices of it, so the ranks in order give the batch that one process would see.

    Args:
        tasks: tasks of a batch over all ranks; a multiple of ``ranks``.
        episodes: episodes of an epoch; the last batch is shorter if ``tasks`` does not divide it.
        rank, ranks: this process and the number of processes.
        start: gives the number of the first batch, asked whenever an iteration begins.
    """

    tasks: int
    episodes: int
    rank: int
    ranks: int
    start: Callable[[], int]

    def __len__(self) -> int:
        return -(-self.episodes // self.tasks)

    def __iter__(self) -> Iterator[Batch]:
        first = self.start()
        for number in range(first, first + len(self)):
            epoch, batch = divmod(number, len(self))
            begin = batch * self.tasks
            size = min(self.tasks, self.episodes - begin) // self.ranks
            begin += self.rank * size
            yield epoch, range(begin, begin + size)


class EpisodeLoader:
    """Iterates over the batches of a sampler, drawn here or by worker processes.

    Not a DataLoader but the owner of one, so that Lightning does not exchange the sampler, which already
    knows the ranks, for a distributed one.
    """

    def __init__(self, dataset: EpisodeDataset, sampler: BatchSampler, workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        self.batches = sampler
        self._loader = DataLoader(
            dataset,
            batch_size=None,  # the data set is asked for whole batches
            sampler=sampler,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            # Its own, since every iteration draws from it: a resumed run must find torch's untouched.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Episode | Draft]:
        # A generator: Lightning asks for iterators before it needs them, and only the first batch
        # starts the workers and asks the sampler where to begin.
        yield from self._loader

    # Lightning resumes inside an epoch only with loaders that have these. There is nothing to save: where to
    # begin follows from the trainer's own count of batches.
    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process of a run: its workers serve on until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
