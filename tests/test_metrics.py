"""EpisodeMean against numpy, and against sums in exact fractions."""

from __future__ import annotations

from fractions import Fraction

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


def exact(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width, from sums without rounding."""
    numbers = [Fraction(float(value)) for value in values]
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    return float(mean), 1.96 * float(variance / len(numbers)) ** 0.5


@pytest.mark.parametrize("mean", [1e6, -1e6, 1e9, 0.0])
@pytest.mark.parametrize("sizes", [[400], [16] * 25, [1] * 40, [1, 399]])
def test_a_small_deviation_about_a_large_mean_is_kept(mean: float, sizes: list[int]) -> None:
    values = mean + 1e-3 * np.random.default_rng(1).standard_normal(sum(sizes))
    metric = EpisodeMean()
    for part in torch.from_numpy(values).split(sizes):
        metric.update(part)
    score, (middle, half) = metric.compute(), exact(values)
    assert score["mean"].item() == pytest.approx(middle, rel=1e-15, abs=1e-18)
    assert score["ci95"].item() == pytest.approx(half, rel=1e-3 if abs(mean) > 1e8 else 1e-6)


@pytest.mark.parametrize("shares", [[100, 100], [1, 199], [0, 200], [200, 0], [50, 0, 150], [3, 3, 194]])
def test_ranks_are_merged_as_torchmetrics_merges_them(shares: list[int]) -> None:
    """Each rank's state is gathered and handed, stacked, to the state's reduction."""
    values = 1e6 + 1e-3 * np.random.default_rng(2).standard_normal(sum(shares))
    ranks = []
    for part in torch.from_numpy(values).split(shares):
        ranks.append(EpisodeMean())
        ranks[-1].update(part)
    gathered = torch.stack([rank.moments for rank in ranks])
    whole = EpisodeMean()
    whole.update(torch.zeros(1))  # or torchmetrics warns that there was none
    whole.moments = whole._reductions["moments"](gathered)
    middle, half = exact(values)
    assert whole.compute()["mean"].item() == pytest.approx(middle, rel=1e-15)
    assert whole.compute()["ci95"].item() == pytest.approx(half, rel=1e-6)


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    metric = EpisodeMean()
    assert metric(torch.tensor([1.0, 3.0]))["mean"] == 2
    assert metric(torch.tensor([5.0]))["mean"] == 5
    assert metric.compute()["mean"] == 3


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric EpisodeMean was called before")
def test_nothing_has_no_mean() -> None:
    metric = EpisodeMean()
    assert metric.compute()["mean"].isnan()
    assert metric.compute()["ci95"].isnan()
    metric.update(torch.empty(0))
    metric.update(torch.tensor([2.0]))
    assert metric.compute()["mean"] == 2


def test_what_is_not_finite_is_not_left_out() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([1.0, torch.nan]))
    assert metric.compute()["mean"].isnan()
    metric.reset()
    metric.update(torch.tensor([1.0, torch.inf]))
    metric.update(torch.tensor([1.0]))
    assert not metric.compute()["mean"].isfinite()


def test_reset_forgets() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([5.0, 7.0]))
    metric.compute()
    metric.reset()
    metric.update(torch.tensor([1.0, 2.0]))
    assert metric.compute()["mean"] == 1.5
