"""Sinusoid regression by MAML, Meta-SGD and iMAML: mean squared error over 1,000 tasks.

    python benchmarks/sinusoid.py [--meta_steps 4000] [--members maml meta_sgd imaml] [--shots 5 10]

Amplitude 0.1 to 5, phase 0 to π, x in [−5, 5], a network of 2 x 40, 25 tasks a meta-step, Adam 0.001 outside, as in Finn
et al. (2017), section 5.1. Prints a Markdown table; writes benchmarks/results/sinusoid.csv. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _common import RESULTS, machine, read, write
from family import fit_and_test

from imaml_lightning.adaptation import Adaptation, Implicit, Unrolled
from imaml_lightning.data import EpisodeDataModule, Sinusoid
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner import MetaLearner
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import MLP
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem import ProximalTerm

#: name -> (label, adaptation)
MEMBERS: dict[str, tuple[str, Callable[[], Adaptation]]] = {
    "maml": ("MAML, 5 steps (10 in test)", lambda: Unrolled(SGD(0.01), steps=5, eval_steps=10)),
    "meta_sgd": (
        "Meta-SGD, 1 step",
        lambda: Unrolled(SGD(0.01), steps=1, learned=[Learned("lr", "parameter", domain="real")]),
    ),
    "imaml": (
        "iMAML, λ = 0.5, 16 steps, 5 CG steps",
        lambda: Implicit(
            GradientDescent(0.02, 16), ConjugateGradient(max_steps=5, rtol=0.01), proximal=ProximalTerm(0.5)
        ),
    ),
}
#: Mean squared errors as their authors, or papers that compare with them, print them: (5-shot, 10-shot)
PUBLISHED = {"MAML, by several papers": ("0.68 to 1.13", "0.07 to 0.77"), "Meta-Curvature": ("0.41", "0.20")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta_steps", type=int, default=4000)
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10])
    options = parser.parse_args()

    kept = read("sinusoid") if (RESULTS / "sinusoid.csv").is_file() else []
    rows = [row for row in kept if row["member"] not in options.members]  # those of members not asked for stay
    for name in options.members:
        label, adaptation = MEMBERS[name]
        for shot in options.shots:
            torch.manual_seed(0)
            learner = MetaLearner(MLP(hidden=(40, 40)), adaptation(), torch.nn.MSELoss(), task_chunk=100)
            data = EpisodeDataModule(Sinusoid(), shot=shot, query=10, eval_query=100, tasks=25, test_episodes=1000)
            figures, seconds = fit_and_test(learner, data, options.meta_steps)
            row = {"member": name, "label": label, "shot": shot, "meta_steps": options.meta_steps}
            row |= {
                "mse": figures["test/loss"],
                "ci95": figures["test/loss_ci95"],
                "before": figures["test/loss_before"],
            }
            rows.append(row | {"cpu_seconds": seconds})
            print(rows[-1], flush=True)

    print(f"\n{machine()}; 1,000 test tasks\n")
    print("| method | meta-steps | 5-shot | 10-shot | CPU s of training |\n|---|---:|---:|---:|---:|")
    for name, (label, _) in MEMBERS.items():
        mine = {int(row["shot"]): row for row in rows if row["member"] == name}
        errors = " | ".join(
            f"{float(mine[k]['mse']):.2f} ± {float(mine[k]['ci95']):.2f}" if k in mine else "" for k in (5, 10)
        )
        seconds = " / ".join(f"{float(row['cpu_seconds']):.0f}" for row in mine.values())
        if mine:
            print(f"| {label} | {next(iter(mine.values()))['meta_steps']} | {errors} | {seconds} |")
    for method, errors in PUBLISHED.items():
        print(f"| {method} (published) | | {' | '.join(errors)} | |")
    write("sinusoid", rows)


if __name__ == "__main__":
    main()
