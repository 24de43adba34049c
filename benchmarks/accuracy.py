"""Accuracy against core-seconds on Omniglot: one training, tested in four settings; what is adapted and how it is differentiated.

    accuracy.py --seconds 635 --seeds 0 1 2                          # the head alone, exact implicit gradient
    accuracy.py --seconds 60 --variants head-first-order head-maml   # others in the same frame
    accuracy.py --keep heads                                         # keeps heads/head_0.ckpt
    accuracy.py --seconds 200 --start heads/head_0.ckpt --variants head fixed-block --results accuracy_from_head

Core-seconds are process time of training alone, on one thread, over which the outer rate falls to 0 as a cosine. Split and
test episodes are those of configs/omniglot.yaml. Each query example is classified by itself unless the row says
``transductive``. A row is added for each run; rows of the same variant, seed and length are replaced.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from _common import machine, read, table, write
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from imaml_lightning import EpisodeDataModule, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, Prototypes, Unrolled
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.data import Augment, Omniglot
from imaml_lightning.inner import GradientDescent, HessianFree, Newton
from imaml_lightning.linear import ConjugateGradient, Exact
from imaml_lightning.models import Conv4, OneHotSquaredError
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem import GaussNewton, Hessian
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.run.callbacks import MovingAverage, StartFrom

SETTINGS = ("5w1s", "5w5s", "20w1s", "20w5s")


@dataclass(frozen=True)
class Variant:
    """What is adapted, and how that is differentiated."""

    adaptation: Callable[[], Adaptation]
    inner: Callable[[], nn.Module | None] = lambda: None  # the support set's criterion; None is the query set's
    adapt: tuple[str, ...] = ("head.*",)
    norm: str | tuple[str, ...] = "running"
    way: int = 40
    tasks: int = 1
    folds: int = 4
    filters: tuple[int, ...] = (32, 64, 64, 64)
    augment: Augment | None = None
    average: bool = False


def exact(strength: float = 1.0) -> Implicit:
    return Implicit(Newton(), Exact(), Hessian(), ProximalTerm(strength, learn=True))


def one_hot(learn: bool = True) -> nn.Module:
    return OneHotSquaredError(40.0, learn)


def cross_entropy() -> nn.Module:
    return nn.CrossEntropyLoss(reduction="sum")  # as OneHotSquaredError is a sum


def deeper(linear: type, learn: bool = True) -> Implicit:
    """For non-convex problems: 10 steps of descent, 5 products of CG, λ by tensor."""
    descent = GradientDescent(0.02, 10)
    return Implicit(descent, ConjugateGradient(5, 1e-2), linear(), ProximalTerm(1.0, "tensor", learn=learn))


class HeadAndBlock(ProximalTerm):
    """λ = 1 for the last adapted tensor, the head, and 1e5 for the others, for a loss as large as targets of 40 make it."""

    def __init__(self, learn: bool) -> None:
        super().__init__(1e5, "tensor", learn)

    def fit_to(self, network: FlatNetwork) -> None:
        super().fit_to(network)
        self.raw.data[-1] = self._raw(1.0, 1).item()


HEAD = Variant(exact, one_hot)
LAST = ("body.3.*", "head.*")
BLOCK = Variant(lambda: deeper(GaussNewton), cross_entropy, LAST, ("running",) * 3 + ("batch",))
ALL = replace(BLOCK, adapt=("*",), norm="batch", way=20, folds=1)
STEPS = HessianFree(cg_steps=5, max_steps=3)
FIXED = Variant(
    lambda: Implicit(STEPS, ConjugateGradient(5, 1e-2), GaussNewton(), HeadAndBlock(learn=True)),
    one_hot, LAST, ("running",) * 3 + ("fixed",),
)  # fmt: skip
WIDE = replace(
    HEAD,
    filters=(32, 64, 128, 128),
    way=60,
    augment=Augment(False, rotation=10, scale=0.15, shear=0.15, shift=1.5),
    average=True,
)
VARIANTS = {
    "head": HEAD,
    "head-small-strength": replace(HEAD, adaptation=lambda: exact(0.1), inner=lambda: OneHotSquaredError(10.0)),
    "head-wide": WIDE,
    "head-cross-entropy": Variant(lambda: exact(0.01), cross_entropy),
    "head-first-order": Variant(lambda: FirstOrder(Newton(), ProximalTerm(1.0)), lambda: one_hot(learn=False)),
    "head-maml": Variant(lambda: Unrolled(SGD(100.0), steps=5, learned=[Learned("lr")]), nn.CrossEntropyLoss),
    "head-prototypes": Variant(Prototypes),
    "wide-prototypes": replace(WIDE, adaptation=Prototypes, inner=lambda: None),
    "head-no-folds": replace(HEAD, folds=1),
    "block-gauss-newton": BLOCK,
    "block-hessian": replace(BLOCK, adaptation=lambda: deeper(Hessian)),
    "block-first-order": replace(BLOCK, adaptation=lambda: FirstOrder(GradientDescent(0.02, 10), ProximalTerm(1.0))),
    "block-maml": replace(BLOCK, adaptation=lambda: Unrolled(SGD(0.02), steps=5, learned=[Learned("lr", "tensor")])),
    "fixed-block-gauss-newton": FIXED,
    "fixed-block-first-order": replace(FIXED, adaptation=lambda: FirstOrder(STEPS, HeadAndBlock(learn=False)), inner=lambda: one_hot(False)),
    "all-gauss-newton": ALL,
    "all-first-order": replace(ALL, adaptation=lambda: FirstOrder(GradientDescent(0.02, 10), ProximalTerm(1.0))),
    "all-maml": replace(ALL, adaptation=lambda: Unrolled(SGD(0.02), steps=5, learned=[Learned("lr", "tensor")])),
}  # fmt: skip


class Budget(Callback):
    """Ends training when its core-seconds are spent; until then the outer rate falls as a cosine."""

    def __init__(self, seconds: float, lr: float) -> None:
        self.seconds, self.lr = seconds, lr
        self.used = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.process_time()

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * min(1.0, self.used / self.seconds))) / 2

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        now = time.process_time()
        self.used, self.since = self.used + now - self.since, now
        trainer.should_stop = trainer.should_stop or self.used >= self.seconds


def untrained(chosen: Variant, lr: float) -> MetaLearner:
    """The learner of a variant; ``lr`` is of the outer Adam, at the start."""
    network = Conv4(
        filters=chosen.filters, norm=chosen.norm, norm_first=True, pools=3, unit_length=True, any_way=True,
    )  # fmt: skip
    return MetaLearner(
        network, chosen.adaptation(), support_criterion=chosen.inner(), adapt=chosen.adapt, folds=chosen.folds,
        optimizer=lambda p: torch.optim.Adam(p, lr=lr),
    )  # fmt: skip


def run(
    name: str, seed: int, seconds: float, lr: float, root: str, episodes: int, start: str = "", keep: str = ""
) -> dict[str, object]:
    """Train and test one variant, from the checkpoint ``start`` if there is one; its own goes into the folder ``keep``."""
    chosen = VARIANTS[name]
    seed_everything(seed, verbose=False)
    learner = untrained(chosen, lr)
    data = EpisodeDataModule(
        Omniglot(root, download=True, splits="random"), way=chosen.way, query=3, tasks=chosen.tasks, eval_way=20,
        eval_query=15, eval_settings=SETTINGS, train_batches=100, test_episodes=episodes, augment=chosen.augment,
    )  # fmt: skip
    budget = Budget(seconds, lr)
    callbacks: list[Callback] = [budget, *([MovingAverage()] if chosen.average else [])]
    callbacks += [StartFrom(start)] if start else []
    trainer = Trainer(
        max_steps=10**6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, callbacks=callbacks, inference_mode=False, min_epochs=0,
    )  # fmt: skip
    trainer.fit(learner, data)
    steps = trainer.global_step
    if keep:
        trainer.save_checkpoint(Path(keep) / f"{name}_{seed}.ckpt")
    (figures,) = trainer.test(learner, data, verbose=False)[:1] or [{}]
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    row: dict[str, object] = {"variant": name, "seed": seed, "core_seconds": budget.used, "meta_steps": steps}
    for setting in SETTINGS:
        row[setting] = 100 * figures[f"test/{setting}/accuracy_{learner.protocol}"]
        row[f"{setting}_ci95"] = 100 * figures[f"test/{setting}/accuracy_{learner.protocol}_ci95"]
    row["stationarity"] = max(figures[f"test/{setting}/inner_stationarity"] for setting in SETTINGS)
    return row | {
        "protocol": learner.protocol,
        "strength": float(learner.adaptation.proximal.strength().detach().mean()),
    }


def summary(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """A line for each variant and length: means over seeds, with their standard deviation."""
    groups: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["variant"], round(float(row["core_seconds"]), -1)), []).append(row)
    lines: list[dict[str, object]] = []
    for (variant, seconds), group in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        line: dict[str, object] = {"variant": variant, "core-seconds": f"{seconds:.0f}", "seeds": len(group)}
        line["meta-steps"] = round(mean(int(row["meta_steps"]) for row in group))
        for setting in SETTINGS:
            values = [float(row[setting]) for row in group]
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
            line[setting] = f"{mean(values):.2f}{spread}"
        lines.append(
            line | {"‖∇G‖/‖∇L‖": max(float(row["stationarity"]) for row in group), "protocol": group[0]["protocol"]}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["head"], choices=VARIANTS)
    parser.add_argument("--seconds", type=float, default=635.0, help="Core-seconds of training.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float, default=0.003, help="Of the outer Adam, at the start.")
    parser.add_argument("--episodes", type=int, default=1000, help="Test episodes of each setting.")
    parser.add_argument("--start", default="", help="A checkpoint whose network training begins with.")
    parser.add_argument("--keep", default="", help="A folder for the checkpoints.")
    parser.add_argument("--results", default="accuracy", help="Name of the table in results/.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    root = os.environ.get("IMAML_OMNIGLOT_ROOT", "data")
    for seed in chosen.seeds:
        for name in chosen.variants:
            row = run(name, seed, chosen.seconds, chosen.lr, root, chosen.episodes, chosen.start, chosen.keep)
            same = (name, str(seed), round(chosen.seconds, -1))
            rows = [
                r
                for r in read(chosen.results)
                if (r["variant"], r["seed"], round(float(r["core_seconds"]), -1)) != same
            ]
            write(chosen.results, [*rows, row])
            print(table([row]), flush=True)
    print(f"\n{machine()}\n\n{table(summary(read(chosen.results)))}")


if __name__ == "__main__":
    main()
