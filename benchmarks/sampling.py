"""Episodes drawn a second of processor time by one process and one thread: 5-way 1-shot, 15 queries a class, 16 a batch.

    python benchmarks/sampling.py [--omniglot ROOT]

Prints a Markdown table and writes benchmarks/results/sampling.csv and .md. Sampling and gathering are timed (class and image numbers,
and the copy out of the bank as uint8); the change to floats happens on the device. Processor time leaves out other work on the
machine; a data set on a slow disk would wait longer. Pictures of Mini-ImageNet's size come from a
bank of its shape (64 classes of 600 pictures, 84 x 84 x 3) filled with noise. With ``--omniglot``, torchmeta's BatchMetaDataLoader
is timed beside, without workers, on the same classes, as its helper ``omniglot`` sets it up (28 x 28, floats), and easyfsl's
TaskSampler where it is installed (``make bench-peers``), on images in memory. learn2learn does not build on Python 3.11.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from _common import publish

import imaml_lightning  # noqa: F401  (repairs imports before lightning is imported)
from imaml_lightning.data import (
    BankClass,
    ClassSource,
    EpisodeDataModule,
    EpisodeSource,
    Glyphs,
    Harmonic,
    Omniglot,
    Sinusoid,
)

TASKS, REPEATS = 16, 5


class Photographs(ClassSource):
    """Noise in the shape of Mini-ImageNet's training classes."""

    shape = (3, 84, 84)

    def recipe(self) -> dict[str, object]:
        return {"source": "noise-84", "version": 1}

    def build(self) -> Iterator[BankClass]:
        rng = np.random.default_rng(0)
        for split, count in (("train", 64), ("val", 16), ("test", 20)):
            for number in range(count):
                yield BankClass(split, str(number), rng.integers(0, 256, (600, *self.shape), np.uint8))


def ours(
    source: EpisodeSource, batches: int, way: int = 5, query: int = 15, tasks: int = TASKS
) -> Callable[[], Iterable[object]]:
    data = EpisodeDataModule(source, way, 1, query, tasks, batches, eval_way=5)
    data.prepare_data()
    data.setup()
    return data.train_dataloader


def torchmeta(root: str, batches: int) -> Callable[[], Iterable[object]]:
    from imaml_lightning.data.torchmeta.repair import repair_torchmeta

    repair_torchmeta()
    from itertools import islice

    from torchmeta.datasets.helpers import omniglot
    from torchmeta.utils.data import BatchMetaDataLoader

    data = omniglot(root, 1, 5, test_shots=15, meta_train=True, shuffle=True, seed=0)
    return lambda: islice(BatchMetaDataLoader(data, TASKS, num_workers=0), batches)


def easyfsl(source: ClassSource, batches: int) -> Callable[[], Iterable[object]]:
    """easyfsl's TaskSampler and collate function on the same images, held in memory as tensors; it draws one task a batch."""
    from easyfsl.datasets import FewShotDataset
    from easyfsl.samplers import TaskSampler
    from torch.utils.data import DataLoader, Sampler

    source.prepare()
    bank = source.bank
    train = bank.splits["train"]
    images = torch.from_numpy(np.array(bank.examples[: bank.starts[train.stop]]))
    labels = np.repeat(np.arange(len(train)), np.diff(bank.starts[: train.stop + 1])).tolist()

    class InMemory(FewShotDataset):
        def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
            return images[number], labels[number]

        def __len__(self) -> int:
            return len(labels)

        def get_labels(self) -> list[int]:
            return labels

    data = InMemory()
    Sampler.__init__ = lambda self, data_source=None: None  # version 1.5.0 passes what torch no longer takes
    sampler = TaskSampler(data, n_way=5, n_shot=1, n_query=15, n_tasks=TASKS * batches)
    return lambda: DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)


def batches_per_second(loader: Callable[[], Iterable[object]], batches: int) -> list[float]:
    """One figure a repeat, after one to warm up."""
    figures = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        for _batch in loader():
            pass
        figures.append(batches / (time.process_time() - start))
    return figures[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", metavar="ROOT", help="folder that holds torchmeta's omniglot folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    timed: list[tuple[str, Callable[[], Iterable[object]], int, int]] = [
        (type(source).__name__, ours(source, 50), 50, TASKS) for source in (Glyphs(), Sinusoid(), Harmonic())
    ]
    for tasks, way, query in ((4, 20, 5), (2, 60, 3)):
        loader = ours(Glyphs(), 200, way, query, tasks)
        timed.append((f"Glyphs, {tasks} episodes a batch, {way}-way, {query} queries", loader, 200, tasks))
    timed.append(("84 x 84 x 3 photographs", ours(Photographs(), 20), 20, TASKS))
    if args.omniglot:
        timed.append(("Omniglot (vinyals)", ours(Omniglot(args.omniglot), 50), 50, TASKS))
        timed.append(("Omniglot (random)", ours(Omniglot(args.omniglot, splits="random"), 50), 50, TASKS))
        timed.append(("torchmeta's BatchMetaDataLoader, Omniglot", torchmeta(args.omniglot, 2), 2, TASKS))
        if importlib.util.find_spec("easyfsl"):
            timed.append(("easyfsl's TaskSampler, Omniglot", easyfsl(Omniglot(args.omniglot), 2), 2, TASKS))
    rows = []
    for name, loader, batches, tasks in timed:
        figures = sorted(batches_per_second(loader, batches))
        least, middle, most = (figures[at] for at in (0, REPEATS // 2, -1))
        rows.append(
            {
                "source": name,
                "median_per_s": round(tasks * middle),
                "least_per_s": round(tasks * least),
                "most_per_s": round(tasks * most),
                "ms_a_batch": 1000 / middle,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    publish("sampling", rows)


if __name__ == "__main__":
    main()
