"""Short training runs at equal gradient evaluations: which adaptation learns most for its work?

    IMAML_OMNIGLOT_ROOT=DIR python benchmarks/training.py [--variants NAME ...] [--evaluations 25000] [--filters 32]

Every run has the same seed, episodes, initial weights and outer schedule (a cosine over the work, not over the steps).
Runs that are not named keep their rows in benchmarks/results/training.csv; docs/training.png shows them all.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from _common import CountedObjective, Tally, omniglot, read, save, show, write
from matplotlib.figure import Figure

from imaml_lightning import FirstOrder, Implicit, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation
from imaml_lightning.inner import GradientDescent
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import Conv4
from imaml_lightning.problem import Curvature, GaussNewton, Hessian, ReleasedCode, Result


def implicit(steps: int, lr: float, cg: int, strength: float = 2.0, curvature: Curvature | None = None) -> Adaptation:
    inner, linear = GradientDescent(lr, steps), ConjugateGradient(cg, rtol=0.01)
    return Implicit(inner, linear, curvature or GaussNewton(), ProximalTerm(strength))


def first_order(steps: int, lr: float, strength: float = 2.0) -> Adaptation:
    return FirstOrder(GradientDescent(lr, steps), ProximalTerm(strength))


VARIANTS = {
    "Gauss-Newton, 16 x 0.1, 5 CG": lambda: implicit(16, 0.1, 5),
    "first order, 16 x 0.1": lambda: first_order(16, 0.1),
    "Gauss-Newton, 8 x 0.2, 3 CG": lambda: implicit(8, 0.2, 3),
    "first order, 8 x 0.2": lambda: first_order(8, 0.2),
    "Gauss-Newton, 8 x 0.2, 2 CG": lambda: implicit(8, 0.2, 2),
    "Gauss-Newton, 8 x 0.2, 3 CG, λ = 0.5": lambda: implicit(8, 0.2, 3, 0.5),
    "first order, 8 x 0.2, λ = 0.5": lambda: first_order(8, 0.2, 0.5),
    "Gauss-Newton, 8 x 0.2, 3 CG, λ = 0.1": lambda: implicit(8, 0.2, 3, 0.1),
    "Hessian, 8 x 0.2, 3 CG": lambda: implicit(8, 0.2, 3, curvature=Hessian()),
    "released code, 8 x 0.2, 3 CG": lambda: implicit(8, 0.2, 3, curvature=ReleasedCode()),
}


def train(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows over the run, each the mean since the one before; the last one has the validation accuracy too."""
    torch.manual_seed(options.seed)
    data = omniglot(options.query)
    learner = MetaLearner(Conv4(filters=options.filters), VARIANTS[name]())
    optimizer = torch.optim.Adam(learner.parameters(), lr=options.lr)
    rows, window, work, step, seconds = [], [], 0.0, 0, 0.0
    while work < options.evaluations:
        episode = data.episode("train", step * options.tasks, tasks=options.tasks)
        began = time.process_time()
        optimizer.param_groups[0]["lr"] = options.lr * (1 + math.cos(math.pi * work / options.evaluations)) / 2
        optimizer.zero_grad()
        objective = CountedObjective.of(learner.objective(episode.support), tally := Tally())
        adapted = learner.adaptation(objective)
        figures = learner.judge(adapted.phi, episode.query)
        figures["loss"].mean().backward()
        optimizer.step()
        seconds += time.process_time() - began
        linear, step, stationarity = adapted.linear, step + 1, adapted.stationarity.mean().item()
        tally.products = linear.steps.max().item() if linear else 0
        # The query set counts by its size in support sets.
        work += options.tasks * (tally.evaluations + options.query)
        window.append(
            {
                "train_accuracy": figures["accuracy"].mean().item(),
                "stationarity": stationarity,
                "linear_residual": linear.residual.mean().item() if linear else math.nan,
                "indefinite": (linear.result == Result.INDEFINITE).double().mean().item() if linear else 0.0,
            }
        )
        if work >= (len(rows) + 1) * options.evaluations / options.points:
            means = {key: sum(row[key] for row in window) / len(window) for key in window[0]}
            progress = {"variant": name, "meta_step": step, "evaluations": round(work), "seconds": round(seconds)}
            rows.append(progress | means | {"val_accuracy": ""})
            window = []
    rows[-1]["val_accuracy"] = validate(learner, data, options)
    return rows


def validate(learner: MetaLearner, data, options: argparse.Namespace) -> float:
    """Accuracy on the fixed validation episodes, 15 queries a class."""
    right = []
    for first in range(0, options.val_episodes, 10):
        episode = data.episode("val", first, tasks=10)
        _, after = learner.outputs(episode)
        right.append((after.argmax(-1) == episode.query.y).double().mean().item())
    return sum(right) / len(right)


def picture(rows: list[dict[str, str]]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        last = f"{name}: {100 * float(mine[-1]['val_accuracy']):.1f} %"
        style = "--" if name.startswith("first") else ":" if name.startswith(("Hessian", "released")) else "-"
        points = [(float(row["evaluations"]), 100 * float(row["train_accuracy"])) for row in mine]
        axes.plot(*zip(*points, strict=True), style, label=last, linewidth=1.4)
    axes.set(xlabel="gradient evaluations", ylabel="query accuracy of training tasks, %", title="Omniglot 5-way 1-shot")
    axes.legend(fontsize=8, frameon=False, title="validation accuracy at the end", title_fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--evaluations", type=int, default=25_000, help="task gradients of a run")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--query", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.003, help="of Adam outside")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=20, help="rows of a run")
    parser.add_argument("--val_episodes", type=int, default=200)
    parser.add_argument("--name", default="training", help="of the files in benchmarks/results")
    options = parser.parse_args()
    for name in options.variants:
        rows: list = train(name, options)
        show(rows[-1:])
        write(options.name, [row for row in read(options.name) if row["variant"] != name] + rows)
    save(picture(read(options.name)), options.name)


if __name__ == "__main__":
    main()
