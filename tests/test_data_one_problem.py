"""OneProblem: labels that stay, and parts that do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_data import COUNTS, IMAGES, Tiny

from imaml_lightning.data import OneProblem
from imaml_lightning.errors import UsageError


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
