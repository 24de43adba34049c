"""Learning rates learned in training, for each group of layers, against a fixed and a step-annealed rate.

    IMAML_OMNIGLOT_ROOT=... python benchmarks/learned_rate.py [--meta_steps 150] [--way 100] [--lr 0.1]

A DenseNet-8 on characters of Omniglot as one classification problem; every meta-step is five steps of SGD with momentum 0.9
on batches of 50. The annealed rate falls to a tenth after half and again after three quarters. All begin alike and
see the same batches; learned rates also see 100 validation images a meta-step. Prints a Markdown table; writes
benchmarks/results/learned_rate.csv and docs/learned_rate.png. As in figure 1 of Grefenstette et al. (2019). One thread.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import machine, write
from _ordinary_training import Continued, OneProblem
from family import fit_and_test

from imaml_lightning.data import EpisodeDataModule, Omniglot
from imaml_lightning.episode import Episode
from imaml_lightning.learner import MetaLearner
from imaml_lightning.models import DenseNet
from imaml_lightning.optimizers import SGD, Learned

PICTURE = Path(__file__).parents[1] / "docs" / "learned_rate.png"
GROUPS = {
    "stem": "body.0.*",
    "block 1": "body.[23].*",
    "block 2": "body.[4-6].*",
    "block 3": "body.[7-9].*",
    "head": "*",
}
KINDS = ("fixed", "step-annealed", "learned")


class Watched(MetaLearner):
    """Keeps test accuracy and rates at every tenth meta-step, and anneals the rate where asked."""

    def watch(self, kind: str, test: Episode, anneal_at: tuple[int, ...]) -> None:
        self.kind, self.test_episode, self.anneal_at, self.rows = kind, test, anneal_at, []

    def on_train_batch_end(self, outputs: object, batch: Episode, batch_idx: int) -> None:
        adaptation: Continued = self.adaptation
        if self.global_step in self.anneal_at:
            adaptation.optimizer = replace(adaptation.optimizer, lr=adaptation.optimizer.lr / 10)
        if self.global_step % 10 == 0:
            rates = [adaptation.optimizer.lr] * len(GROUPS)
            if adaptation.learned:
                rates = torch.nn.functional.softplus(adaptation.learned["lr"].raw[0]).tolist()
            with torch.no_grad():
                accuracy = self.judge(self.flat.vector()[None], self.test_episode.query)["accuracy"].item()
            row = {"kind": self.kind, "step": 5 * self.global_step, "accuracy": accuracy}
            self.rows.append(row | dict(zip(GROUPS, rates, strict=True)))


def run(kind: str, data: EpisodeDataModule, options: argparse.Namespace) -> list[dict[str, object]]:
    """One training."""
    torch.manual_seed(0)
    learned = [Learned("lr", "group", groups=list(GROUPS.values()))] if kind == "learned" else []
    adaptation = Continued(SGD(options.lr, momentum=0.9), steps=5, learned=learned)
    network = DenseNet(way=options.way, growth=options.growth)
    learner = Watched(network, adaptation, optimizer=lambda p: torch.optim.Adam(p, options.outer_lr))
    anneal_at = (options.meta_steps // 2, 3 * options.meta_steps // 4) if kind == "step-annealed" else ()
    learner.watch(kind, data.episode("test", 0), anneal_at)
    _, seconds = fit_and_test(learner, data, options.meta_steps)
    return [row | {"cpu_seconds": seconds} for row in learner.rows]


def draw(rows: list[dict[str, object]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        left.plot([row["step"] for row in mine], [100 * row["accuracy"] for row in mine], label=kind)
        if kind == "learned":
            for group in GROUPS:
                right.plot([row["step"] for row in mine], [row[group] for row in mine], label=group)
    left.set(xlabel="training steps", ylabel="test accuracy, %")
    right.set(xlabel="training steps", ylabel="learned rate", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta_steps", type=int, default=150)
    parser.add_argument("--way", type=int, default=100, help="characters")
    parser.add_argument("--growth", type=int, default=8, help="of the DenseNet")
    parser.add_argument("--lr", type=float, default=0.1, help="the rate at the start")
    parser.add_argument("--outer_lr", type=float, default=0.05, help="Adam's, for the rates before softplus")
    options = parser.parse_args()
    root = os.environ.get("IMAML_OMNIGLOT_ROOT", "data")
    source = OneProblem(Omniglot(root, download=True, rotations=False))
    data = EpisodeDataModule(source, way=options.way, shot=250, query=100, eval_query=1000, tasks=1, test_episodes=1)

    rows: list[dict[str, object]] = []
    for kind in KINDS:
        rows += run(kind, data, options)
        print(rows[-1], flush=True)
    print(f"\n{machine()}; {options.way} characters, DenseNet-8 of growth ", end="")
    print(f"{options.growth}, {5 * options.meta_steps} steps from a rate of {options.lr}; 1,000 test images\n")
    print("| rate | test accuracy, % | best on the way, % | CPU s |\n|---|---:|---:|---:|")
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        best = max(row["accuracy"] for row in mine)
        print(f"| {kind} | {100 * mine[-1]['accuracy']:.1f} | {100 * best:.1f} | {mine[-1]['cpu_seconds']:.0f} |")
    write("learned_rate", rows)
    draw(rows)


if __name__ == "__main__":
    main()
