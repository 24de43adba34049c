"""EpisodeMean against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imaml_lightning.learner.metrics import EpisodeMean


@pytest.mark.parametrize("sizes", [[2], [1, 1], [4, 1, 7], [100, 100]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_interval(sizes: list[int], dtype: torch.dtype) -> None:
    values = 0.5 + 1e-3 * np.random.default_rng(0).standard_normal(sum(sizes))
    rows = torch.from_numpy(values).to(dtype)
    metric = EpisodeMean()
    for part in rows.split(sizes):
        metric.update(part)
    score, taken = metric.compute(), rows.double().numpy()
    assert score["mean"].item() == pytest.approx(taken.mean(), rel=1e-12)
    assert score["ci95"].item() == pytest.approx(1.96 * taken.std(ddof=1) / np.sqrt(len(taken)), rel=1e-6)


def test_interval_covers_the_truth_19_times_in_20() -> None:
    draws = np.random.default_rng(0).uniform(size=(400, 200))
    covered = 0
    for row in torch.from_numpy(draws):
        metric = EpisodeMean()
        metric.update(row)
        score = metric.compute()
        covered += bool((score["mean"] - 0.5).abs() <= score["ci95"])
    assert covered / len(draws) == pytest.approx(0.95, abs=0.03)


def test_equal_values_have_no_width_and_one_value_has_none_known() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([0.1]))
    assert metric.compute()["ci95"].isnan()
    metric.update(torch.full((9,), 0.1))
    assert metric.compute()["ci95"] == pytest.approx(0, abs=1e-9)


def test_what_is_not_finite_is_not_left_out() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([1.0, torch.nan]))
    assert metric.compute()["mean"].isnan()


def test_reset_forgets() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([5.0, 7.0]))
    metric.compute()
    metric.reset()
    metric.update(torch.tensor([1.0, 2.0]))
    assert metric.compute()["mean"] == 1.5
