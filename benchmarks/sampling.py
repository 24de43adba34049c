"""Episodes drawn a second by one process: 5-way 1-shot, 15 queries a class, from a memory-mapped class bank.

    python benchmarks/sampling.py [--omniglot ROOT]

Prints a Markdown table and writes ``benchmarks/results/sampling.csv``. Sampling and gathering are timed (class and
image numbers, and the copy out of the bank as uint8); the change to floats happens on the device.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from pathlib import Path

import torch

import imaml_lightning  # noqa: F401  (repairs imports before lightning is imported)
from imaml_lightning.data import EpisodeDataModule, EpisodeSource, Glyphs, Omniglot, Sinusoid

TASKS, BATCHES, REPEATS = 16, 100, 5
RESULTS = Path(__file__).parent / "results" / "sampling.csv"


def episodes_per_second(source: EpisodeSource) -> list[float]:
    """One figure a repeat, each over ``TASKS * BATCHES`` episodes of the training split, after one to warm up."""
    data = EpisodeDataModule(source, way=5, shot=1, query=15, tasks=TASKS, train_batches=BATCHES)
    data.prepare_data()
    data.setup()
    figures = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for _batch in data.train_dataloader():
            pass
        figures.append(TASKS * BATCHES / (time.perf_counter() - start))
    return figures[1:]


def machine() -> str:
    """Processor, threads used and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, 1 of {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", metavar="ROOT", help="folder that holds torchmeta's omniglot folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources: list[EpisodeSource] = [Glyphs(), Sinusoid()]
    if args.omniglot:
        sources += [Omniglot(args.omniglot), Omniglot(args.omniglot, splits="random")]
    rows = []
    for source in sources:
        name = type(source).__name__ + (f" ({source.splits})" if isinstance(source, Omniglot) else "")
        figures = sorted(episodes_per_second(source))
        rows.append((name, round(figures[REPEATS // 2]), round(figures[0]), round(figures[-1])))
    print(f"{machine()}\n\n| source | episodes/s, median of {REPEATS} | least | most |\n|---|---|---|---|")
    for row in rows:
        print("| {} | {:,} | {:,} | {:,} |".format(*row))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "median_per_s", "least_per_s", "most_per_s", "machine"])
        writer.writerows([*row, machine()] for row in rows)


if __name__ == "__main__":
    main()
