"""Sinusoid regression at equal core-seconds: the last layer or everything adapted, by implicit gradients and others.

    python benchmarks/sinusoid.py --seconds 60 --seeds 0 1 2 [--variants last …] [--shots 5 10 5..10]

Amplitude 0.1 to 5, phase 0 to π, x in [−5, 5], a network of 2 x 40, 25 tasks and 10 queries a meta-step (Finn et al. 2017,
section 5.1). Core-seconds are process time of training alone, on one thread, over which the outer rate falls to 0 as a
cosine. With a range of shots one training is tested with 5 and with 10. Squared errors are means over 100 points of each
of 4,000 test tasks; few of them are hard, so the mean over 1,000 and the median are given as well. A row is added for each run
and tested shot; rows of the same run are replaced.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from _common import publish, read, table, write
from accuracy import Budget
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from imaml_lightning import EpisodeDataModule, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, Unrolled
from imaml_lightning.data import Sinusoid
from imaml_lightning.inner import GradientDescent, Newton
from imaml_lightning.linear import ConjugateGradient, Exact
from imaml_lightning.models import MLP
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem import Hessian


@dataclass(frozen=True)
class Variant:
    """What is adapted, how that is differentiated, and the outer rate at the start."""

    label: str
    adaptation: Callable[[], Adaptation]
    adapt: tuple[str, ...] = ("layers.4.*",)
    lr: float = 3e-3


def first_order(strength: float) -> FirstOrder:
    return FirstOrder(Newton(), ProximalTerm(strength))


def imaml() -> Implicit:
    descent = GradientDescent(0.01, 16)
    return Implicit(descent, ConjugateGradient(max_steps=5, rtol=0.01), proximal=ProximalTerm(0.5))


ALL = ("*",)
VARIANTS = {
    "last": Variant(
        "last layer, implicit, λ learned",
        lambda: Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.2, "tensor", learn=True)),
    ),
    "last-fixed": Variant(
        "last layer, implicit, λ = 0.2", lambda: Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.2))
    ),
    "last-first-order": Variant("last layer, first order, λ = 0.2", lambda: first_order(0.2)),
    "last-first-order-small": Variant("last layer, first order, λ = 0.02", lambda: first_order(0.02)),
    "maml": Variant(
        "everything, MAML, 5 steps (10 in test)", lambda: Unrolled(SGD(0.01), steps=5, eval_steps=10), ALL, 1e-3
    ),
    "imaml": Variant("everything, iMAML, λ = 0.5, 16 steps, 5 CG steps", imaml, ALL, 1e-3),
}


def run(name: str, shots: str, seed: int, seconds: float) -> list[dict[str, object]]:
    """Train and test one variant; a row for each number of shots that it is tested with."""
    chosen = VARIANTS[name]
    seed_everything(seed, verbose=False)
    last = chosen.adapt != ALL
    learner = MetaLearner(
        MLP(hidden=(40, 40)), chosen.adaptation(), nn.MSELoss(), adapt=chosen.adapt, task_chunk=100,
        # A sum, so that λ weighs as much against one example whatever their number.
        support_criterion=nn.MSELoss(reduction="sum") if last else None,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=chosen.lr, fused=True),
    )  # fmt: skip
    data = EpisodeDataModule(
        Sinusoid(), shot=shots, eval_shot=5, query=10, tasks=25, train_batches=1000, seed=seed
    )  # fmt: skip
    budget = Budget(seconds, chosen.lr)
    trainer = Trainer(
        max_steps=10**7, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, callbacks=[budget], inference_mode=False, min_epochs=0,
    )  # fmt: skip
    trainer.fit(learner, data)
    row = {
        "variant": name,
        "shots": shots,
        "seed": seed,
        "core_seconds": budget.used,
        "meta_steps": trainer.global_step,
    }
    return [row | {"tested": shot} | judged(learner, shot) for shot in ((5, 10) if ".." in shots else (int(shots),))]


def judged(learner: MetaLearner, shot: int, tasks: int = 4000) -> dict[str, float]:
    """Squared errors on other tasks, the same for every run, and how well their inner problems were solved."""
    data = EpisodeDataModule(Sinusoid(), shot=shot, query=100, seed=12345)
    errors, stationarity = list[Tensor](), list[Tensor]()
    for first in range(0, tasks, 100):
        episode = data.episode("test", first, tasks=100)
        errors.append((learner.outputs(episode)[1] - episode.query.y).square().mean((1, 2)))
        with torch.no_grad():
            stationarity.append(learner.adapted(episode.support).stationarity)
    each = torch.cat(errors).double()
    return {
        "mse": each.mean().item(),
        "ci95": 1.96 * each.std().item() / math.sqrt(tasks),
        "mse_1000": each[:1000].mean().item(),
        "ci95_1000": 1.96 * each[:1000].std().item() / math.sqrt(1000),
        "median": each.median().item(),
        "stationarity": torch.cat(stationarity).amax().item(),
        "strength": learner.adaptation.proximal.strength().mean().item(),
    }


def summary(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """A line for each variant and length: means over seeds, with their standard deviation."""
    groups: dict[tuple[int, int, str], list[dict[str, str]]] = {}
    for row in rows:
        key = int(row["tested"]), round(float(row["core_seconds"])), list(VARIANTS).index(row["variant"])
        groups.setdefault((*key, row["shots"]), []).append(row)
    lines: list[dict[str, object]] = []
    for (tested, seconds, _, shots), group in sorted(groups.items()):
        line: dict[str, object] = {
            "shots": tested,
            "core-seconds": seconds,
            "variant": VARIANTS[group[0]["variant"]].label,
        }
        if ".." in shots:
            line["variant"] = f"{line['variant']}, one training for {shots} shots"
        line |= {"seeds": len(group), "meta-steps": round(mean(int(row["meta_steps"]) for row in group))}
        for figure in ("mse", "mse_1000", "median"):
            values = [float(row[figure]) for row in group]
            line[figure] = f"{mean(values):.2g}" + (f" ± {stdev(values):.1g}" if len(values) > 1 else "")
        lines.append(line | {"largest ‖∇G‖/‖∇L‖": max(float(row["stationarity"]) for row in group)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--shots", nargs="+", default=["5", "10"])
    parser.add_argument("--seconds", type=float, default=60.0, help="Core-seconds of training.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for seed in chosen.seeds:
        for name in chosen.variants:
            for shots in chosen.shots:
                new = run(name, shots, seed, chosen.seconds)
                same = (name, shots, str(seed), round(chosen.seconds))
                kept = [
                    r
                    for r in read("sinusoid_runs")
                    if (r["variant"], r["shots"], r["seed"], round(float(r["core_seconds"]))) != same
                ]
                write("sinusoid_runs", [*kept, *new])
                print(table(new), flush=True)
    publish("sinusoid", summary(read("sinusoid_runs")))


if __name__ == "__main__":
    main()
