"""Ordinary training as a case of meta-learning: labels that stay, parts that do not overlap, and torch's own steps."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_family import TINY, _watched, fit, moved  # noqa: F401 (a fixture)
from test_unrolled import learner_without_strength, outer_loss
from tiny_data import COUNTS, IMAGES, Tiny
from tiny_learners import points
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers import SGD, Adam, Learned

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from _ordinary_training import Continued, OneProblem  # noqa: E402 (it is beside the benchmarks)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*manual optimization.*"
)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def test_labels_stay_and_parts_do_not_overlap() -> None:
    problem, seen = OneProblem(Tiny(), held_out=2), {}
    for split in ("train", "val", "test"):
        problem.check(split, 5, 40, 40)
        episode = problem.sample(split, generators(3), 5, 40, 60)
        assert episode.support.x.shape == (3, 40, 1, 4, 4)
        assert episode.query.y.shape == (3, 60)
        for examples in episode:
            assert torch.equal(examples.x[:, :, 0, 0, 0].long(), examples.y)  # Tiny's pixels say the class
        seen[split] = [set(examples.x[:, :, 0, 1, 0].flatten().tolist()) for examples in episode]
    # Of 8 images the last two are for test, the two before for validation.
    assert seen["train"] == seen["val"] == [{0, 1, 2, 3}, {4, 5}]
    assert seen["test"] == [{0, 1, 2, 3}, {6, 7}]


def test_an_episode_depends_on_its_own_generator_alone() -> None:
    problem = OneProblem(Tiny())
    three, one = (problem.sample("train", generators(n), 5, 6, 6) for n in (3, 1))
    assert torch.equal(three.support.x[:1], one.support.x)
    assert torch.equal(three.query.x[:1], one.query.x)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="way"):
        OneProblem(Tiny()).check("train", COUNTS["train"] + 1, 1, 1)
    with pytest.raises(UsageError, match="held_out"):
        OneProblem(Tiny(), held_out=IMAGES // 2).check("train", 2, 1, 1)
    with pytest.raises(UsageError, match="held_out"):
        OneProblem(Tiny(), held_out=0)


def test_continued_training_is_ordinary_training() -> None:
    built = learner_without_strength(Continued(Adam(0.02), steps=3))
    twin = learner_without_strength(Continued(Adam(0.02), steps=3)).network
    theirs = torch.optim.Adam(twin.parameters(), 0.02)
    outer = torch.optim.Adam(built.parameters(), 0.1)
    for seed in range(4):
        episode = points(tasks=1, seed=seed)
        loss, _ = outer_loss(built, episode)
        outer.zero_grad()
        loss.sum().backward()
        outer.step()
        built.adaptation.after_outer_step(built.flat, outer)
        for number in range(3):
            theirs.zero_grad()
            x, y = (part[0, number::3] for part in episode.support)
            nn.functional.mse_loss(twin(x), y).backward()
            theirs.step()
    for mine, other in zip(built.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(built.adapted(points().support).phi, built.flat.vector().expand(3, -1))
    with pytest.raises(UsageError, match="tasks 1"):
        built.adapted(points().support)


def test_continued_training_gives_its_rates_their_gradient_and_theta_none() -> None:
    learned = [Learned("lr", "tensor"), Learned("momentum")]
    built = learner_without_strength(Continued(SGD(0.05, momentum=0.5), steps=3, learned=learned))
    rates = list(built.adaptation.learned.parameters())

    def loss(*_: Tensor) -> Tensor:
        return outer_loss(built, points(tasks=1))[0]

    assert torch.autograd.gradcheck(loss, rates, atol=1e-7, rtol=1e-5)
    loss().sum().backward()
    assert all(not p.grad.any() for p in built.network.parameters())
    assert all(rate.grad.all() for rate in rates)


def test_the_command_line_learns_rates() -> None:
    config = ["--trust", "tiny_data,_ordinary_training", "--config", str(BENCHMARKS / "learned_rate.yaml")]
    source = ["--data.source.init_args.source", "tiny_data.Tiny", "--data.source.init_args.held_out", "2"]
    sizes = [
        "--data.way",
        "3",
        "--data.tasks",
        "1",
        "--data.shot",
        "10",
        "--data.query",
        "6",
        "--data.val_episodes",
        "1",
    ]
    network = [f"--model.network.init_args.{option}" for option in ("growth=2", "size=8", "blocks=[1,1]")]
    learner = fit(*config, *source, *sizes, *network, tiny=TINY[-6:])
    assert moved(learner) >= {"adaptation.learned.lr.raw", "network.head.weight", "network.head.bias"}
