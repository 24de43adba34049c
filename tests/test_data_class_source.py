"""Few-shot classification episodes: labels, disjointness, and what cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import COUNTS, IMAGES, Tiny

from imaml_lightning.data import SPLITS
from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError

WAY, SHOT, QUERY = 4, 3, 5  # shot + query = all images of a class


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(str(tmp_path_factory.mktemp("bank")))


def draw(source: Tiny, split: str, tasks: int = 50, first: int = 0) -> Episode:
    rngs = [np.random.default_rng(seed) for seed in range(first, first + tasks)]
    return source.sample(split, rngs, WAY, SHOT, QUERY)


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_labels(source: Tiny, split: str) -> None:
    episode = draw(source, split)
    for examples, each in zip(episode, (SHOT, QUERY), strict=True):
        assert examples.x.shape == (50, WAY * each, 1, 4, 4)
        assert examples.x.dtype == torch.uint8
        assert examples.y.dtype == torch.int64
        assert examples.y.tolist() == [[label for label in range(WAY) for _ in range(each)]] * 50


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_distinct_and_of_the_split(source: Tiny, split: str) -> None:
    episode = draw(source, split)
    bank = source.bank.splits[split]
    for task in range(50):
        x = torch.cat([episode.support.x[task], episode.query.x[task]])
        y = torch.cat([episode.support.y[task], episode.query.y[task]])
        classes, images = x[:, 0, 0, 0], x[:, 0, 1, 0]
        # One class a label, the same in support and query, and no image twice.
        assert len({(c, label) for c, label in zip(classes.tolist(), y.tolist(), strict=True)}) == WAY
        assert len(set(classes.tolist())) == WAY
        assert len(set(zip(classes.tolist(), images.tolist(), strict=True))) == WAY * IMAGES
        assert set(classes.tolist()) <= set(bank)


def test_label_order_and_images_are_drawn_per_episode(source: Tiny) -> None:
    episode = draw(source, "train", tasks=2000)
    classes = episode.support.x[:, ::SHOT, 0, 0, 0]  # [task, way]
    images = episode.support.x[:, :, 0, 1, 0]
    # Every class carries every label, every image is in the support set, about equally often.
    for label in range(WAY):
        counts = torch.bincount(classes[:, label].long(), minlength=COUNTS["train"])
        assert counts.min() > 0.6 * 2000 / 12
        assert counts.max() < 1.4 * 2000 / 12
    counts = torch.bincount(images.flatten().long(), minlength=IMAGES)
    assert counts.min() > 0.9 * counts.max()
    assert (classes[:, 0] > classes[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_task_depends_on_its_own_generator_alone(source: Tiny) -> None:
    together, apart = draw(source, "train", 6), draw(source, "train", 1, first=4)
    for examples, alone in zip(together, apart, strict=True):
        assert torch.equal(examples.x[4], alone.x[0])


@pytest.mark.parametrize("split", SPLITS)
def test_what_a_split_cannot_give_is_named(source: Tiny, split: str) -> None:
    count = COUNTS[split]
    source.check(split, count, SHOT, QUERY)
    with pytest.raises(UsageError, match=rf"--data.way {count + 1} .*Tiny has for {split}, {count};"):
        source.check(split, count + 1, SHOT, QUERY)
    with pytest.raises(UsageError, match=rf"--data.shot {SHOT} .*plus 6 query examples .* 8 that class"):
        source.check(split, WAY, SHOT, 6)


def test_constructing_touches_nothing(tmp_path: Path) -> None:
    Tiny(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
