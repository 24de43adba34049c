"""Sinusoid: each task is one sine wave of the stated distribution."""

from __future__ import annotations

import math

import numpy as np
import torch

from imaml_lightning.data import Harmonic, Sinusoid, SinusoidAndLine


def draw(tasks: int, shot: int = 5, query: int = 10):
    rngs = [np.random.default_rng(seed) for seed in range(tasks)]
    return Sinusoid().sample("train", rngs, 0, shot, query)


def test_shapes() -> None:
    support, query = draw(3)
    assert support.x.shape == support.y.shape == (3, 5, 1)
    assert query.x.shape == query.y.shape == (3, 10, 1)
    assert {t.dtype for t in (*support, *query)} == {torch.float32}


def test_each_task_is_one_wave_of_the_stated_range() -> None:
    # a sin(x − φ) = p sin x + q cos x with p = a cos φ, q = −a sin φ: fit p, q on the support, judge on the query.
    support, query = draw(2000)
    features = [torch.cat([e.x.sin(), e.x.cos()], 2).double() for e in (support, query)]
    p_q = torch.linalg.lstsq(features[0], support.y.double()).solution
    error = (features[1] @ p_q - query.y).abs().amax((1, 2))
    assert error.median() < 1e-5
    good = error < 1e-3
    assert good.float().mean() > 0.99
    p, q = p_q[good, 0, 0], p_q[good, 1, 0]
    amplitude, phase = torch.hypot(p, q), torch.atan2(-q, p)
    assert 0.099 < amplitude.min() < 0.15
    assert 4.95 < amplitude.max() < 5.001
    assert -1e-2 < phase.min() < 0.05
    assert math.pi - 0.05 < phase.max() < math.pi + 1e-2
    assert abs(amplitude.mean() - 2.55) < 0.1
    assert abs(phase.mean() - math.pi / 2) < 0.1
    assert query.x.min() > -5
    assert query.x.max() < 5
    assert abs(query.x.mean()) < 0.1


def test_support_does_not_depend_on_the_query_count() -> None:
    assert torch.equal(draw(4, query=1).support.y, draw(4, query=50).support.y)


def test_half_of_the_tasks_are_lines() -> None:
    rngs = [np.random.default_rng(seed) for seed in range(2000)]
    support, query = SinusoidAndLine().sample("train", rngs, 0, 5, 10)
    features = [torch.stack([e.x[..., 0], torch.ones_like(e.x[..., 0])], 2).double() for e in (support, query)]
    line = torch.linalg.lstsq(features[0], support.y.double()).solution
    straight = (features[1] @ line - query.y).abs().amax((1, 2)) < 1e-3
    assert abs(straight.float().mean() - 0.5) < 0.04
    assert 2.95 < line[straight].abs().max() < 3.001
    assert abs(line[straight].mean()) < 0.15
    assert query.y[~straight].abs().max() < 5.001


def test_harmonics_of_two_frequencies() -> None:
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    support, query = Harmonic().sample("train", rngs, 0, 40, 40)
    x = torch.cat([support.x, query.x], 1)[..., 0].double()
    y = torch.cat([support.y, query.y], 1).double()
    # y is a combination of four waves once ω is right: find it on a grid, and judge by the best fit.
    errors = []
    for frequency in torch.linspace(4.9, 7.1, 221):
        waves = torch.stack([f(k * frequency * x) for k in (1, 2) for f in (torch.sin, torch.cos)], 2)
        fit = torch.linalg.lstsq(waves, y).solution
        errors.append(((waves @ fit - y) ** 2).mean((1, 2)))
    best, place = torch.stack(errors).min(0)
    assert (best / y.var((1, 2))).median() < 1e-3
    found = torch.linspace(4.9, 7.1, 221)[place]
    assert 4.98 < found.min() < 5.1
    assert 6.9 < found.max() < 7.02
    centre = x.mean(1)
    assert centre.abs().max() < 4.6
    assert abs((x - centre[:, None]).std() - 1) < 0.02
