"""Folds of an episode, and features that are remembered in an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imaml_lightning import Episode, Examples, MetaLearner, UsageError
from imaml_lightning.learner.folds import folded
from imaml_lightning.problem import feature_memory
from imaml_lightning.problem.feature_memory import FeatureMemory


def numbered(tasks: int = 2, way: int = 3, shot: int = 1, query: int = 3) -> Episode:
    """x names task, class and image: 100 task + 10 class + image; examples come image by image, as the sampler has them."""

    def part(first: int, count: int) -> Examples:
        y = torch.arange(way).repeat(count).expand(tasks, -1)
        image = torch.arange(first, first + count).repeat_interleave(way)
        x = 100 * torch.arange(tasks)[:, None] + 10 * y + image
        return Examples(x[..., None].double(), y)

    return Episode(part(0, shot), part(shot, query))


@pytest.mark.parametrize(("shot", "query", "folds"), [(1, 3, 4), (2, 4, 3), (1, 3, 2)])
def test_each_image_is_in_one_support_set_and_else_in_the_query_set(shot: int, query: int, folds: int) -> None:
    episode = numbered(shot=shot, query=query)
    parts = folded(episode, folds)
    assert parts.tasks == folds * episode.tasks
    for number in range(folds):
        for task in range(episode.tasks):
            row = number * episode.tasks + task
            support, query_set = (sorted(part.x[row, :, 0].int().tolist()) for part in parts)
            expected = [100 * task + 10 * c + i for c in range(3) for i in range(number * shot, (number + 1) * shot)]
            assert support == expected
            every = [100 * task + 10 * c + i for c in range(3) for i in range(shot + query)]
            assert query_set == sorted(set(every) - set(expected))
    for part in parts:
        assert ((part.x[..., 0] % 100).div(10, rounding_mode="floor") == part.y).all()
    for first, part in zip((Examples(x[: episode.tasks], y[: episode.tasks]) for x, y in parts), episode, strict=True):
        assert torch.equal(first.x, part.x)
        assert torch.equal(first.y, part.y)


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="5 folds need"):
        folded(numbered(), 5)
    uneven = numbered()
    with pytest.raises(UsageError, match="equally many"):
        folded(Episode(Examples(uneven.support.x[:, :2], uneven.support.y[:, :2]), uneven.query), 2)
    values = Episode(*(Examples(part.x, part.x) for part in uneven))
    with pytest.raises(UsageError, match="need classes"):
        folded(values, 2)
    with pytest.raises(UsageError, match="folds"):
        MetaLearner(nn.Linear(1, 3), folds=0)


def test_an_image_is_evaluated_once_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def evaluate(x: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x

    memory, x = FeatureMemory(), torch.arange(12.0).view(6, 2)
    for rows in ([0, 1, 2, 1], [2, 3, 0], [5, 4, 5]):
        assert torch.equal(memory.of(x[rows], evaluate), 2 * x[rows])
    assert torch.equal(torch.cat(seen), x[[0, 1, 2, 3, 5, 4]])
    monkeypatch.setattr(feature_memory, "MOST", 3)
    small = FeatureMemory()
    for rows in ([0, 1], [2, 3], [0, 2]):
        assert torch.equal(small.of(x[rows], evaluate), 2 * x[rows])
