"""``data check``: what a source holds, whether episodes can be had of it, and whether anything leaks between splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource, progress
from imaml_lightning.data.datamodule import EpisodeDataModule
from imaml_lightning.data.sources.tasks import Tasks
from imaml_lightning.errors import DataError

#: An example: its split, the class or task that it belongs to, and its content.
Example = tuple[Split, str, bytes]


def check(data: EpisodeDataModule) -> None:
    """Print classes (or tasks), examples and duplicates of each split, and what an episode needs.

    Raises:
        UsageError: such episodes cannot be had.
        DataError: an example is in two splits.
    """
    source = data.source
    data.prepare_data()
    source.setup()
    if isinstance(source, ClassSource):
        _print_table(["split", "classes", "groups", "examples", "smallest class"], _class_rows(source))
    elif isinstance(source, Tasks):
        _print_table(["split", "tasks", "rows", "smallest task", "largest task"], _task_rows(source))
    else:
        print(f"{type(source).__name__} draws its tasks from a distribution: there is nothing to count.")
    print(f"inputs: {source.task}, each of shape {tuple(source.shape)}")
    if source.task == "classification":
        for split in SPLITS:
            way, shot, query = data.setting(split).most
            print(
                f"an episode of {split}: {way} classes with {shot} support and {query} query examples each, "
                f"{way * (shot + query)} in all"
            )
    data.setup()
    leaks = _duplicates(_examples(source))
    if leaks:
        raise DataError(f"{leaks}: take them out of one, or training has seen what it is tested on.")
    print("no example is in two splits; such episodes can be had")


def _class_rows(source: ClassSource) -> Iterator[list[str]]:
    bank, counts = source.bank, source.bank.counts
    for split in SPLITS:
        members = bank.splits.get(split, range(0))
        mine = counts[members.start : members.stop]
        groups = {bank.groups[i] for i in members} - {""}
        smallest = f"{mine.min()} ({bank.names[members[int(mine.argmin())]]})" if len(mine) else "-"
        yield [split, f"{len(members):,}", str(len(groups) or "-"), f"{mine.sum():,}", smallest]


def _task_rows(source: Tasks) -> Iterator[list[str]]:
    for split in SPLITS:
        sizes = [len(y) for _, y in source.rows(split)]
        yield [split, f"{len(sizes):,}", f"{sum(sizes):,}", f"{min(sizes)} rows", f"{max(sizes)} rows"]


def _examples(source: EpisodeSource) -> Iterator[Example]:
    if isinstance(source, ClassSource):
        return _class_examples(source)
    return _task_examples(source) if isinstance(source, Tasks) else iter(())


def _class_examples(source: ClassSource) -> Iterator[Example]:
    bank = source.bank
    for split, members in bank.splits.items():
        for number in progress(members, f"Comparing examples of {split}"):
            for example in bank.of_class(number):
                yield split, bank.names[number], example.tobytes()


def _task_examples(source: Tasks) -> Iterator[Example]:
    for split in SPLITS:
        for number, (x, y) in enumerate(progress(source.rows(split), f"Comparing rows of {split}")):
            for inputs, target in zip(x, y, strict=True):
                yield split, f"task {number}", inputs.tobytes() + target.tobytes()


def _duplicates(examples: Iterator[Example]) -> str:
    """Prints duplicates within splits; returns a sentence about those that two splits share."""
    seen: dict[bytes, list[tuple[Split, str]]] = defaultdict(list)
    for split, owner, content in examples:
        seen[hashlib.blake2b(content, digest_size=16).digest()].append((split, owner))
    twice = [places for places in seen.values() if len(places) > 1]
    shared = [places for places in twice if len({split for split, _ in places}) > 1]
    within = len(twice) - len(shared)
    if within:
        split, owner = next(p for p in twice if p not in shared)[0]
        print(f"{within:,} examples come more than once within a split, such as one of {owner} in {split}")
    if not shared:
        return ""
    shown = " and ".join(f"{split}'s {owner}" for split, owner in dict.fromkeys(shared[0]))
    return f"{len(shared):,} examples are in two splits, such as one of {shown}"


def _print_table(header: list[str], rows: Iterator[list[str]]) -> None:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
