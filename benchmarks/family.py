"""Every member of the family on one problem at the same number of inner gradient evaluations.

    python benchmarks/family.py [--steps 1 5 16 64] [--train_steps 5] [--meta_steps 60] [--members maml imaml ...]

Glyphs, 5-way 1-shot. Each member is trained for the same number of meta-steps of ``--train_steps`` inner steps and
tested with as many; then CPU seconds and growth of peak memory of one meta-step are measured at each of ``--steps``, each
in a process of its own. Prints a Markdown table; writes benchmarks/results/family.csv and docs/family.png. Linux, CPU, one thread.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import machine, write
from memory import ENVIRONMENT, resident

from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, MAMLPlusPlus, Reptile, Unrolled
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.episode import Episode
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner import MetaLearner
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import Conv4
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem import ProximalTerm

PICTURE = Path(__file__).parents[1] / "docs" / "family.png"
STRENGTH = 2.0
#: The inner rate. At 0.2 the meta-gradient through five exact steps explodes (norms of 500 early in training, against 2
#: first-order), because the rate is above 2/L; those that walk back through all steps therefore have the smaller one.
LR, SMALL_LR = 0.2, 0.05
TASKS = 4  # of a meta-step


def rates(*options: object) -> list[Learned]:
    return [Learned("lr", *options)]


def solved(member: type, steps: int, *more: object) -> Adaptation:
    return member(GradientDescent(LR, steps), *more, proximal=ProximalTerm(STRENGTH))


#: name -> (label, inner steps -> adaptation, patterns of adapted parameters)
MEMBERS: dict[str, tuple[str, Callable[[int], Adaptation], str]] = {
    "imaml": ("iMAML, 5 CG steps", lambda t: solved(Implicit, t, ConjugateGradient(max_steps=5, rtol=0.01)), "*"),
    "imaml_first_order": ("first-order on G", lambda t: solved(FirstOrder, t), "*"),
    "maml_proximal": ("MAML on G", lambda t: Unrolled(SGD(SMALL_LR), t, proximal=ProximalTerm(STRENGTH)), "*"),
    "maml": ("MAML", lambda t: Unrolled(SGD(SMALL_LR), t), "*"),
    "maml_checkpointed": ("MAML, checkpointed", lambda t: Unrolled(SGD(SMALL_LR), t, checkpoint=True), "*"),
    "maml_truncated": ("truncated MAML, last 2", lambda t: Unrolled(SGD(LR), t, backward_steps=2), "*"),
    "maml_first_order": ("first-order MAML", lambda t: Unrolled(SGD(LR), t, backward_steps=0), "*"),
    "meta_sgd": ("Meta-SGD", lambda t: Unrolled(SGD(SMALL_LR), t, learned=rates("parameter", False, "real")), "*"),
    "maml_plus_plus": ("MAML++", lambda t: MAMLPlusPlus(SGD(SMALL_LR), t, multi_step_until=30), "*"),
    "anil": ("ANIL", lambda t: Unrolled(SGD(SMALL_LR), t), "head.*"),
    "boil": ("BOIL", lambda t: Unrolled(SGD(SMALL_LR), t), "body.*"),
    "reptile": ("Reptile", lambda t: Reptile(SGD(LR), t), "*"),
}
SAME_AS = {"maml_checkpointed": "maml"}  # to rounding: not trained again


def build(name: str, steps: int, filters: int = 16) -> MetaLearner:
    torch.manual_seed(0)
    _, adaptation, adapt = MEMBERS[name]
    network = Conv4(filters=filters, downsample="stride", zero_head=name != "boil")
    outer = (lambda p: torch.optim.SGD(p, lr=0.5)) if name == "reptile" else (lambda p: torch.optim.Adam(p, lr=0.003))
    return MetaLearner(network, adaptation(steps), optimizer=outer, adapt=[adapt], clip_norm=10.0)


def fit_and_test(learner: MetaLearner, data: EpisodeDataModule, meta_steps: int) -> tuple[dict[str, float], float]:
    """Test figures after ``meta_steps``, and the CPU seconds of the training."""
    from lightning.pytorch import Trainer  # after the package, which repairs what it imports

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=meta_steps, accelerator="cpu", limit_val_batches=0, inference_mode=False, **quiet)
    began = time.process_time()
    trainer.fit(learner, data)
    seconds = time.process_time() - began
    [figures] = trainer.test(learner, data, verbose=False)
    return figures, seconds


def train(name: str, steps: int, meta_steps: int) -> dict[str, float]:
    """Test accuracy after training, in percent, and the CPU seconds that the training took."""
    data = EpisodeDataModule(query=5, tasks=TASKS, test_episodes=200)
    figures, seconds = fit_and_test(build(name, steps), data, meta_steps)
    accuracy = figures["test/accuracy_transductive"], figures["test/accuracy_transductive_ci95"]
    return {"accuracy": 100 * accuracy[0], "ci95": 100 * accuracy[1], "train_seconds": seconds}


def meta_step(learner: MetaLearner, episode: Episode) -> None:
    """What a training step computes, all tasks at once."""
    objective = learner.objective(episode.support)
    adapted = learner.adaptation(objective)
    loss = learner.judge(adapted.phi, episode.query)["loss"]
    query = objective.on(episode.query, learner.criterion)
    learner.adaptation.outer_loss(adapted, loss, objective, query).mean().backward()


def cost(name: str, steps: int) -> dict[str, float]:
    """Growth of the peak memory over the first meta-step, and the CPU seconds of the quicker of the next two."""
    episode = EpisodeDataModule(query=5).episode("train", 0, tasks=TASKS)
    meta_step(build(name, 1, filters=1), episode)  # loads the libraries that are loaded at first use
    learner = build(name, steps)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    meta_step(learner, episode)
    growth, seconds = resident("VmHWM") - before, []
    for _ in range(2):
        began = time.process_time()
        meta_step(learner, episode)
        seconds.append(time.process_time() - began)
    return {"seconds": min(seconds), "memory_mb": growth}


def alone(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """The function's result from a process of its own, forked from this one, which has computed nothing."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def draw(rows: list[dict[str, object]], steps: list[int]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for number, row in enumerate(rows):
        style = {"marker": "o", "color": plt.get_cmap("tab20")(number), "label": row["label"], "markersize": 3}
        thick = {"linewidth": 3 if row["member"] == "imaml" else 1.2}
        left.plot(steps, [row[f"memory_mb_{t}"] for t in steps], **style, **thick)
        right.plot(steps, [row[f"seconds_{t}"] for t in steps], **style, **thick)
    for axes, title in ((left, "growth of peak memory in a meta-step, MB"), (right, "CPU seconds of a meta-step")):
        axes.set(xscale="log", yscale="log", xlabel="inner steps", title=title, xticks=steps, xticklabels=steps)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 16, 64])
    parser.add_argument("--train_steps", type=int, default=5)
    parser.add_argument("--meta_steps", type=int, default=60)
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    EpisodeDataModule().prepare_data()

    rows: list[dict[str, object]] = []
    for name in options.members:
        row: dict[str, object] = {"member": name, "label": MEMBERS[name][0]}
        if name not in SAME_AS:
            row |= alone(train, name, options.train_steps, options.meta_steps)
        for steps in options.steps:
            row |= {f"{what}_{steps}": value for what, value in alone(cost, name, steps).items()}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)

    evaluations = options.train_steps * options.meta_steps * TASKS
    print(
        f"{machine()}. Conv4 (16 filters, stride 2), Glyphs 5-way 1-shot, ",
        end="",
    )
    print(
        f"{TASKS} tasks of 25 queries a meta-step, {options.meta_steps} meta-steps of {options.train_steps} inner ",
        end="",
    )
    print(f"steps: {evaluations:,} inner gradient evaluations a member; 200 test episodes.\n")
    print(
        f"| member | test accuracy, % | CPU s of training | CPU s a meta-step of {TASKS} tasks at "
        + " / ".join(map(str, options.steps)),
        end="",
    )
    print(" inner steps | growth of peak memory, MB |\n|---|---:|---:|---:|---:|")
    for row in rows:
        seconds = " / ".join(f"{row[f'seconds_{t}']:.2f}" for t in options.steps)
        memory = " / ".join(f"{row[f'memory_mb_{t}']:.0f}" for t in options.steps)
        trained = (
            f"as {MEMBERS[SAME_AS[row['member']]][0]} |"
            if row["member"] in SAME_AS
            else (f"{row['accuracy']:.1f} ± {row['ci95']:.1f} | {row['train_seconds']:.0f}")
        )
        print(f"| {row['label']} | {trained} | {seconds} | {memory} |")
    write("family", rows)
    draw(rows, options.steps)


if __name__ == "__main__":
    main()
