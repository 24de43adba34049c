"""Where the time of a meta-step goes: overhead = its time / (its necessary evaluations x the time of each alone).

    python benchmarks/meta_step.py [--settings 5w1s 5w5s 20w1s 20w5s] [--threads 1] [--repeats 5]

A meta-step of T tasks needs T x (inner steps + 1) gradients of the support loss, T x (CG steps) Gauss-Newton products,
and T forward and backward passes of the query set. The meta-step is that of a Lightning Trainer; each evaluation alone
is one call on the same chunk of tasks. Both are timed in turn, and the ratio is that of medians. Writes
benchmarks/results/meta_step.csv.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from _common import show, write
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, Implicit, InnerObjective, MetaLearner
from imaml_lightning.inner import GradientDescent
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import Conv4

TASKS, INNER_STEPS, CG_STEPS = 16, {5: 16, 20: 25}, 5
#: Convolution arithmetic of one image, 28 x 28, in multiply-adds: 64 filters of 3 x 3 before each pooling.
FORWARD = 9 * 64 * (28 * 28 * 1 + 14 * 14 * 64 + 7 * 7 * 64 + 3 * 3 * 64)


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def images(way: int, shot: int) -> Examples:
    """Random images of every class, ``[task, example, 1, 28, 28]``."""
    x = torch.rand(TASKS, way * shot, 1, 28, 28)
    return Examples(x, torch.arange(way).repeat(shot).expand(TASKS, -1))


def measure(way: int, shot: int, options: argparse.Namespace) -> dict[str, object]:
    """Times, counts and the overhead of one setting."""
    torch.manual_seed(0)
    adaptation = Implicit(GradientDescent(0.01, INNER_STEPS[way]), ConjugateGradient(CG_STEPS, rtol=0.0))
    learner = MetaLearner(Conv4(way=way), adaptation, task_chunk=options.chunk)
    episode = Episode(images(way, shot), images(way, options.query))
    chunk = next(iter(episode.chunks(options.chunk)))
    objective = InnerObjective(
        learner.flat, chunk.support, learner.flat.vector().detach(), adaptation.proximal, learner.criterion
    )
    phi = objective.start() + 0.01 * torch.randn(options.chunk, sum(learner.flat.sizes))
    at, u = objective.linearise(phi), torch.randn_like(phi)

    def query() -> None:
        point = phi.clone().requires_grad_()
        learner.judge(point, chunk.query)["loss"].sum().backward()

    alone = {
        "gradient": lambda: objective.value_and_gradient(phi),
        "product": lambda: adaptation.curvature.product(at, u),
        "query": query,
    }
    counts = {"gradient": INNER_STEPS[way] + 1, "product": CG_STEPS, "query": 1}
    trainer = Trainer(
        accelerator="cpu", max_steps=options.repeats + 1, logger=False, enable_checkpointing=False, barebones=True
    )
    times: dict[str, list[float]] = {name: [] for name in ("meta_step", *alone)}

    def step(episode: Episode, batch_idx: int) -> None:
        times["meta_step"].append(seconds(lambda: MetaLearner.training_step(learner, episode, batch_idx)))
        for name, evaluation in alone.items():
            times[name].append(median(seconds(evaluation) for _ in range(3)))

    learner.training_step = step
    trainer.fit(learner, DataLoader([episode] * (options.repeats + 1), batch_size=None))
    middle = {name: median(values[1:]) for name, values in times.items()}
    chunks = TASKS / options.chunk
    necessary = chunks * sum(count * middle[name] for name, count in counts.items())
    # A gradient is about three forward passes, a product about five (two for J u, three for Jᵀ), less the image's own.
    arithmetic = way * shot * (3 * counts["gradient"] + 5 * CG_STEPS) + 3 * way * options.query
    gflop = 2e-9 * TASKS * FORWARD * arithmetic
    return {
        "setting": f"{way}w{shot}s",
        "tasks": TASKS,
        "gradients": TASKS * counts["gradient"],
        "products": TASKS * CG_STEPS,
        "gradient_ms": 1000 * middle["gradient"] / options.chunk,
        "product_ms": 1000 * middle["product"] / options.chunk,
        "query_ms": 1000 * middle["query"] / options.chunk,
        "meta_step_s": middle["meta_step"],
        "overhead": middle["meta_step"] / necessary,
        "GFLOP": gflop,
        "GFLOP/s": gflop / middle["meta_step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["5w1s", "5w5s", "20w1s", "20w5s"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--query", type=int, default=5, help="query images a class")
    parser.add_argument("--chunk", type=int, default=8, help="tasks solved together")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*num_workers")
    rows = []
    for setting in options.settings:
        way, shot = setting.removesuffix("s").split("w")
        rows.append(measure(int(way), int(shot), options))
    show(rows)
    write("meta_step", rows)


if __name__ == "__main__":
    main()
