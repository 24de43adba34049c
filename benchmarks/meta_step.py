"""Where the time of a meta-step goes: overhead = its time / (its necessary evaluations x the time of each alone).

    python benchmarks/meta_step.py [--settings 5w1s 5w5s 20w1s 20w5s] [--repeats 5] [--device cuda]

A meta-step of T tasks needs T x (inner steps + 1) gradients of the support loss, T x (CG steps) Gauss-Newton products,
and T forward and backward passes of the query set. The meta-step is that of a Lightning Trainer; each evaluation alone
is one call on the same chunk of tasks. Both are timed in turn, and the ratio is that of medians. Writes
benchmarks/results/meta_step.csv.
"""

from __future__ import annotations

import argparse
import warnings
from statistics import median

import torch
from _common import publish
from _speed import CG_STEPS, SETTINGS, Setting, options, seconds
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from imaml_lightning import Episode, InnerObjective, MetaLearner
from imaml_lightning.cli.freed_memory import keep_freed_memory


def measure(setting: Setting, chosen: argparse.Namespace) -> dict[str, object]:
    """Times, counts and the overhead of one setting."""
    torch.manual_seed(0)
    tasks = chosen.tasks or setting.tasks
    size = min(chosen.chunk, tasks)
    adaptation = setting.adaptation()
    learner = MetaLearner(setting.network(), adaptation, task_chunk=size).to(chosen.device)
    episode = setting.episode(tasks, chosen.query)
    chunk = next(iter(setting.episode(size, chosen.query, chosen.device).chunks(None)))
    objective = InnerObjective(
        learner.flat, chunk.support, learner.flat.vector().detach(), adaptation.proximal, learner.criterion
    )
    phi = objective.start() + 0.01 * torch.randn(size, sum(learner.flat.sizes), device=chosen.device)
    at, u = objective.linearise(phi), torch.randn_like(phi)

    def query() -> None:
        point = phi.clone().requires_grad_()
        learner.judge(point, chunk.query)["loss"].sum().backward()

    alone = {
        "gradient": lambda: objective.value_and_gradient(phi),
        "product": lambda: adaptation.curvature.product(at, u),
        "query": query,
    }
    counts = {"gradient": setting.inner_steps + 1, "product": CG_STEPS, "query": 1}
    trainer = Trainer(
        accelerator=chosen.device, devices=1, max_steps=chosen.repeats + 1, logger=False, enable_checkpointing=False,
        barebones=True,
    )  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ("meta_step", *alone)}

    def step(episode: Episode, batch_idx: int) -> None:
        times["meta_step"].append(seconds(lambda: MetaLearner.training_step(learner, episode, batch_idx)))
        for name, evaluation in alone.items():
            times[name].append(median(seconds(evaluation) for _ in range(3)))

    learner.training_step = step
    trainer.fit(learner, DataLoader([episode] * (chosen.repeats + 1), batch_size=None))
    middle = {name: median(values[1:]) for name, values in times.items()}
    chunks = tasks / size
    necessary = chunks * sum(count * middle[name] for name, count in counts.items())
    # A gradient is about three forward passes, a product about five (two for J u, three for Jᵀ), less the image's own.
    support = setting.way * setting.shot
    arithmetic = support * (3 * counts["gradient"] + 5 * CG_STEPS) + 3 * setting.way * chosen.query
    gflop = 2e-9 * tasks * setting.forward * arithmetic
    return {
        "setting": setting.name,
        "tasks": tasks,
        "gradients": tasks * counts["gradient"],
        "products": tasks * CG_STEPS,
        "gradient_ms": 1000 * middle["gradient"] / size,
        "product_ms": 1000 * middle["product"] / size,
        "query_ms": 1000 * middle["query"] / size,
        "meta_step_s": middle["meta_step"],
        "overhead": middle["meta_step"] / necessary,
        "GFLOP": gflop,
        "GFLOP/s": gflop / middle["meta_step"],
    }


def main() -> None:
    parser = options(__doc__, settings=["5w1s", "5w5s", "20w1s", "20w5s"], repeats=5)
    parser.add_argument("--chunk", type=int, default=8, help="tasks solved together")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*num_workers")
    rows = [measure(SETTINGS[name], chosen) for name in chosen.settings]
    publish("meta_step", rows)


if __name__ == "__main__":
    main()
