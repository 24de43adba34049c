"""A meta-step with the head alone adapted: overhead = its time / one forward and backward pass of the body on its images.

    python benchmarks/head_step.py [--repeats 10]

The meta-step is that of a Lightning Trainer, with the optimizer's step: features of all images, the inner problems solved
exactly, query losses, the linear systems, and one walk back. Both are timed in turn in process time on one thread, and the
ratio is that of medians. Writes benchmarks/results/head_step.csv.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from _common import publish
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, Implicit, MetaLearner, ProximalTerm
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import Conv4, OneHotSquaredError
from imaml_lightning.problem import Hessian

#: tasks, ways, query images a class, folds; one shot
SETTINGS = {"1 x 40 ways, 4 folds": (1, 40, 3, 4), "4 x 20 ways": (4, 20, 5, 1), "2 x 60 ways": (2, 60, 3, 1)}
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "squared error": OneHotSquaredError,
    "cross-entropy": lambda: nn.CrossEntropyLoss(reduction="sum"),
}


def images(tasks: int, way: int, count: int) -> Examples:
    return Examples(torch.rand(tasks, way * count, 1, 28, 28), torch.arange(way).repeat(count).expand(tasks, -1))


def seconds(function: Callable[[], object]) -> float:
    """Process time of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def measure(name: str, criterion: str, repeats: int) -> dict[str, object]:
    """Times and their ratio."""
    torch.manual_seed(0)
    tasks, way, query, folds = SETTINGS[name]
    network = Conv4(
        filters=[32, 64, 64, 64], norm="running", norm_first=True, pools=3, unit_length=True, any_way=True,
    )  # fmt: skip
    adaptation = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1, learn=True))
    learner = MetaLearner(
        network, adaptation, support_criterion=CRITERIA[criterion](), adapt=["head.*"], folds=folds
    )  # fmt: skip
    episode = Episode(images(tasks, way, 1), images(tasks, way, query))
    x = torch.cat([part.x.flatten(0, 1) for part in episode])
    times: dict[str, list[float]] = {"meta_step": [], "body": []}

    def body() -> None:
        z = learner.cut.module(x)
        torch.autograd.grad(z, list(learner.cut.module.parameters()), torch.ones_like(z))

    def step(episode: Episode, batch_idx: int) -> None:
        times["meta_step"].append(seconds(lambda: MetaLearner.training_step(learner, episode, batch_idx)))
        times["body"].append(seconds(body))

    learner.training_step = step
    trainer = Trainer(max_steps=repeats + 2, accelerator="cpu", barebones=True)
    trainer.fit(learner, DataLoader([episode] * (repeats + 2), batch_size=None))
    middle = {key: median(values[2:]) for key, values in times.items()}
    return {
        "setting": name,
        "inner criterion": criterion,
        "images": len(x),
        "meta_step_s": middle["meta_step"],
        "body_s": middle["body"],
        "overhead": middle["meta_step"] / middle["body"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*num_workers")
    publish("head_step", [measure(name, criterion, chosen.repeats) for name in SETTINGS for criterion in CRITERIA])


if __name__ == "__main__":
    main()
