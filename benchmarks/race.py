"""The race: core-seconds of training until a test accuracy of Omniglot, ours beside other libraries with their own settings.

    race.py                    # 5 ways; who needs no other training for 20 ways is tested there too
    race.py --way 20           # the others, trained anew for 20 ways
    race.py --contestants ours easyfsl-60-way --seconds 120

Ours is the variant ``head`` of accuracy.py, which is configs/omniglot.yaml with its cosine over ``--seconds``. benchmarks/_peers.py
has the others, and says where their settings are from. Each contestant is a process of one thread; they train in turn, ``--slice``
core-seconds each, so that other work on the machine meets all alike. Core-seconds are process time of training alone: drawing
episodes from memory is counted for ours and not for the others, tests for none. All are fed from the same bank (the random split
with rotations), and tested at growing marks on the same fixed episodes of 1 shot and 15 queries a class by their own adaptation:
as many queries of 5 and of 20 ways, and a tenth of them where accuracy is below 90 %. A contestant stops at its last target or when
its core-seconds are spent. Rows of the same contestant and training ways are replaced. Writes benchmarks/results/race.csv and .md
and docs/race.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from _common import RESULTS, machine, read, save, short, table, write
from _peers import PEERS, Peer, Task
from accuracy import HEAD, Budget, untrained
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning import Episode, EpisodeDataModule, Examples, MetaLearner
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.data import Omniglot

OURS = "ours"
EVERYBODY = (OURS, *PEERS)
TARGETS = {"5w1s": (95.0, 97.0, 98.0, 98.9), "20w1s": (95.3,)}
FIRST_MARK, GROWTH = 15.0, 2**0.5  # core-seconds
ROUGHLY = 90.0  # percent, below which a tenth of the test episodes will do
TURN, END = "turn", "end"
FIELDS = ("contestant", "protocol", "way", "core_seconds", "meta_steps", "5w1s", "5w1s_ci95", "20w1s", "20w1s_ci95")

Row = dict[str, object]
Right = Callable[[Episode], Tensor]  # accuracy ``[task]``


def episodes(way: int, query: int, tasks: int = 1) -> EpisodeDataModule:
    """Training episodes of the bank in memory, or test episodes of the same size."""
    source = Omniglot(os.environ.get("IMAML_OMNIGLOT_ROOT", "data"), download=True, splits="random")
    return EpisodeDataModule(source, way=way, query=query, tasks=tasks, train_batches=100, on_device=True)


def one_by_one(episode: Episode) -> list[Task]:
    return [(Examples(s.x[0], s.y[0]), Examples(q.x[0], q.y[0])) for s, q in episode.chunks(1)]


class Referee:
    """Tests a contestant at its marks, by its accuracy ``right`` on an episode, and lets the next one train after each slice."""

    def __init__(
        self, pipe: Connection, chosen: argparse.Namespace, head: Row, ways: Sequence[int], right: Right
    ) -> None:
        self.pipe, self.chosen, self.head, self.right = pipe, chosen, head, right
        self.tests = {f"{way}w1s": episodes(way, query=15) for way in ways}
        marks = [FIRST_MARK * GROWTH**k for k in range(100)]
        self.marks = [*(mark for mark in marks if mark < 0.95 * chosen.seconds), chosen.seconds]
        self.open = {(setting, target) for setting in self.tests for target in TARGETS[setting]}
        self.steps, self.turn_ends = 0, chosen.slice
        pipe.send(TURN)
        pipe.recv()

    def over(self, used: float) -> bool:
        """Whether the race is over for it, after one more meta-step, at ``used`` core-seconds."""
        self.steps += 1
        if used >= self.marks[0]:
            self.marks = [mark for mark in self.marks if mark > used]
            row = self.test(used)
            self.pipe.send(row)
            self.open = {(setting, target) for setting, target in self.open if row[setting] < target}
        if used >= self.turn_ends:
            self.turn_ends = used + self.chosen.slice
            self.pipe.send(TURN)
            self.pipe.recv()
        return not (self.marks and self.open)

    def test(self, used: float) -> Row:
        """Accuracy and its 95 % interval in percent, in each setting."""
        row: Row = self.head | {"core_seconds": used, "meta_steps": self.steps}
        for setting, data in self.tests.items():
            total = self.chosen.episodes * 5 // data.training.way
            hits: list[Tensor] = []
            for first in range(0, total, 10):
                hits.append(self.right(data.episode("test", first, tasks=min(10, total - first))))
                right = 100 * torch.cat(hits).double()
                if len(right) >= total / 10 and right.mean() < ROUGHLY:
                    break
            row |= {setting: right.mean().item(), f"{setting}_ci95": 1.96 * right.std().item() / len(right) ** 0.5}
        return row


class Watched(Budget):
    """Ours: a budget that asks the referee after each meta-step."""

    def __init__(self, seconds: float, lr: float, referee: Referee) -> None:
        super().__init__(seconds, lr)
        self.referee = referee

    def on_train_batch_end(self, trainer: Trainer, *batch: object) -> None:
        super().on_train_batch_end(trainer, *batch)
        trainer.should_stop = self.referee.over(self.used)
        self.since = time.process_time()  # what the referee did is not counted


def run_ours(pipe: Connection, chosen: argparse.Namespace) -> None:
    learner: MetaLearner = untrained(HEAD, 0.003)

    def right(episode: Episode) -> Tensor:
        return (learner.outputs(episode)[1].argmax(-1) == episode.query.y).double().mean(1)

    head = {"contestant": OURS, "protocol": learner.protocol, "way": HEAD.way}
    referee = Referee(pipe, chosen, head, (5, 20), right)
    trainer = Trainer(
        max_steps=10**6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, min_epochs=0,
        callbacks=[Watched(chosen.seconds, 0.003, referee)],
    )  # fmt: skip
    trainer.fit(learner, episodes(HEAD.way, query=3, tasks=HEAD.tasks))


def run_peer(name: str, pipe: Connection, chosen: argparse.Namespace) -> None:
    peer: Peer = PEERS[name](chosen.way)
    way = peer.way or chosen.way

    def right(episode: Episode) -> Tensor:
        hits = [peer.answers(support, query, False).argmax(1) == query.y for support, query in one_by_one(episode)]
        return torch.stack(hits).double().mean(1)

    head = {"contestant": name, "protocol": peer.protocol, "way": way}
    referee = Referee(pipe, chosen, head, (5, 20) if peer.any_way else (chosen.way,), right)
    data, used = episodes(way, peer.query, peer.tasks), 0.0
    for step in count():
        tasks = one_by_one(data.episode("train", step * peer.tasks, tasks=peer.tasks))
        began = time.process_time()
        peer.meta_step(tasks)
        used += time.process_time() - began
        if referee.over(used):
            return


def run(name: str, pipe: Connection, chosen: argparse.Namespace) -> None:
    """One contestant's process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    seed_everything(chosen.seed, verbose=False)
    run_ours(pipe, chosen) if name == OURS else run_peer(name, pipe, chosen)
    pipe.send(END)


def race(names: Sequence[str], chosen: argparse.Namespace) -> None:
    """All in turn, until the last has ended; rows are written as they come."""
    context, lanes = get_context("spawn"), {}
    for name in names:
        lanes[name], other = context.Pipe()
        context.Process(target=run, args=(name, other, chosen), daemon=True).start()
        other.close()
    ways = {name: str(HEAD.way if name == OURS else PEERS[name].way or chosen.way) for name in names}
    rows: list[Row] = [row for row in read("race") if ways.get(row["contestant"]) != row["way"]]
    for pipe in lanes.values():  # all are built before the first trains
        pipe.recv()
    while lanes:
        for name, pipe in [*lanes.items()]:
            pipe.send(TURN)
            try:
                while isinstance(message := pipe.recv(), dict):
                    rows.append({field: message.get(field, "") for field in FIELDS})
                    print(*(f"{key} {short(value)}" for key, value in message.items()), flush=True)
                    write("race", rows)
            except EOFError:
                print(f"{name} ended with an error; the others go on", flush=True)
                message = END
            if message == END:
                del lanes[name]


def summary(rows: Sequence[dict[str, str]]) -> list[Row]:
    """A line for each contestant: core-seconds at the first mark at which it had each accuracy, and its last accuracy."""
    lines: list[Row] = []
    for name in EVERYBODY:
        mine = [row for row in rows if row["contestant"] == name]
        if not mine:
            continue
        line: Row = {"contestant": name, "protocol": mine[0]["protocol"]}
        for setting, targets in TARGETS.items():
            tested = [row for row in mine if row[setting]]
            for target in targets:
                reached = [float(row["core_seconds"]) for row in tested if float(row[setting]) >= target]
                spent = f"not within {float(tested[-1]['core_seconds']):.0f}" if tested else "not run"
                line[f"{setting} {target:g} %"] = f"{reached[0]:.0f}" if reached else spent
            end = [f"{float(row[setting]):.2f} ± {float(row[setting + '_ci95']):.2f}" for row in tested[-1:]]
            line[f"{setting} at the end"] = "".join(end)
        lines.append(line)
    return lines


def picture(rows: Sequence[dict[str, str]]) -> Figure:
    """Accuracy against core-seconds, a panel for each setting; errors on a logarithmic scale, targets dotted."""
    settings = [setting for setting in TARGETS if any(row[setting] for row in rows)]
    figure = Figure(figsize=(2.5 + 4.5 * len(settings), 4.5), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        for number, name in enumerate(EVERYBODY):
            mine = [row for row in rows if row["contestant"] == name and row[setting]]
            if mine:
                seconds, errors = zip(
                    *((float(row["core_seconds"]), 100 - float(row[setting])) for row in mine), strict=True
                )
                label, width = f"{name} ({mine[0]['protocol']})", 2.2 if name == OURS else 1.2
                axes.plot(seconds, errors, f"C{number}.-", label=label, linewidth=width)
        for target in TARGETS[setting]:
            axes.axhline(100 - target, color="grey", linestyle=":", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="core-seconds of training", ylabel="accuracy, %", title=setting)
        accuracies, seconds = (50, 80, 90, *TARGETS[setting]), (15, 30, 60, 120, 240, 480, 960)
        axes.set_yticks([100 - accuracy for accuracy in accuracies], map("{:g}".format, accuracies))
        axes.set_xticks(seconds, map(str, seconds))
        axes.minorticks_off()
        axes.invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", choices=EVERYBODY, help="All that need this training.")
    parser.add_argument("--way", type=int, default=5, choices=[5, 20], help="Of those of one number of ways.")
    parser.add_argument("--seconds", type=float, default=900.0, help="Core-seconds of training of each.")
    parser.add_argument("--slice", type=float, default=5.0, help="Core-seconds of a turn.")
    parser.add_argument("--episodes", type=int, default=1000, help="Test episodes of 5 ways; a quarter as many of 20.")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    needed = [name for name in EVERYBODY if chosen.way == 5 or (name != OURS and not PEERS[name].any_way)]
    here = [name for name in EVERYBODY if name == OURS or importlib.util.find_spec(PEERS[name].package)]
    names = chosen.contestants or [name for name in needed if name in here]
    if absent := set(names) - set(here):
        parser.error(f"{', '.join(absent)} is not installed: `make bench-race` installs what the registry has")
    torch.set_num_threads(1)
    episodes(5, query=15).prepare_data()  # the bank is built once
    race(names, chosen)
    text = f"    python benchmarks/race.py {' '.join(sys.argv[1:])}\n\n{machine()}\n\n{table(summary(read('race')))}\n"
    (RESULTS / "race.md").write_text(text)  # of all runs that race.csv holds
    print(f"\n{text}")
    save(picture(read("race")), "race")


if __name__ == "__main__":
    main()
