"""Prototypes: the head's rows against a loop over classes, and against ridge regression of large λ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imaml_lightning import Episode, Examples, MetaLearner, ProximalTerm, UsageError
from imaml_lightning.adaptation import Implicit, Prototypes
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import AnyWay, OneHotSquaredError, UnitLength
from imaml_lightning.problem import Hessian

WAY = 3


def learner(adaptation: Prototypes | Implicit, head: nn.Module | None = None, **options) -> MetaLearner:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), UnitLength(), head or AnyWay(4))
    return MetaLearner(network, adaptation, adapt=["3.*"], **options).double()


def episode(shot: int, tasks: int = 2) -> Episode:
    g = torch.Generator().manual_seed(1)
    sets = (
        Examples(torch.randn(tasks, WAY * n, 5, generator=g, dtype=torch.float64), torch.arange(WAY * n).expand(tasks, -1) % WAY)
        for n in (shot, 4)
    )  # fmt: skip
    return Episode(*sets)


def meta_gradient(of: MetaLearner, on: Episode) -> list[Tensor]:
    """Of the body."""
    loss = of.judge(of.adapted(on.support).phi, on.query)["loss"].mean()
    return list(torch.autograd.grad(loss, list(of.network[0].parameters())))


def test_rows_are_class_means_of_one_length() -> None:
    of, on = learner(Prototypes(7.0)), episode(shot=3)
    phi = of.adapted(on.support).phi.detach().reshape(2, WAY, 4).numpy()
    x, y = of.features(on).support.x.detach().numpy(), on.support.y.numpy()
    for task in range(2):
        for c in range(WAY):
            mean = np.mean([x[task, i] for i in range(len(y[task])) if y[task, i] == c], axis=0)
            np.testing.assert_allclose(
                phi[task, c], 7 * mean / np.sqrt((mean**2).sum()), rtol=1e-6
            )  # 7 is kept in float32


def test_of_one_shot_they_are_ridge_regression_of_large_strength() -> None:
    strength, on = 1e7, episode(shot=1)
    ridge = Implicit(Newton(rtol=1e-12), Exact(), Hessian(), ProximalTerm(strength))
    solved = learner(ridge, support_criterion=OneHotSquaredError(7 * strength))
    limit = learner(Prototypes(7.0))
    torch.testing.assert_close(limit.adapted(on.support).phi, solved.adapted(on.support).phi, rtol=1e-5, atol=1e-5)
    for one, other in zip(meta_gradient(limit, on), meta_gradient(solved, on), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_meta_gradient_is_that_of_finite_differences() -> None:
    of, on = learner(Prototypes(7.0)), episode(shot=2)

    def loss() -> Tensor:
        return of.judge(of.adapted(on.support).phi, on.query)["loss"].mean()

    for parameter in (*of.network[0].parameters(), of.adaptation.log_scale):
        (gradient,) = torch.autograd.grad(loss(), parameter)
        u = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(step * u)
                ends.append(loss())
                parameter.sub_(step * u)
        torch.testing.assert_close((gradient * u).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-7, atol=1e-8)


def test_padding_and_classes_without_an_example_count_for_nothing() -> None:
    of, on = learner(Prototypes()), episode(shot=2)
    x, y = on.support
    padded = Examples(torch.cat([x, torch.ones(2, 3, 5)], 1).double(), torch.cat([y, torch.full((2, 3), -100)], 1))
    expected = of.adapted(on.support).phi.reshape(2, WAY, 4)
    found = of.adapted(padded, way=WAY + 1).phi.reshape(2, WAY + 1, 4)
    torch.testing.assert_close(found[:, :WAY], expected)
    assert (found[:, WAY] == 0).all()


def test_what_has_no_prototypes_is_refused() -> None:
    values = Examples(torch.rand(1, 4, 5).double(), torch.rand(1, 4, 1).double())
    with pytest.raises(UsageError, match=r"without a bias.*\[head.weight\]"):
        learner(Prototypes(), nn.Linear(4, WAY)).adapted(episode(1).support)
    with pytest.raises(UsageError, match="targets are values"):
        learner(Prototypes(), nn.Linear(4, 1, bias=False)).adapted(values)
    with pytest.raises(UsageError, match="scale"):
        Prototypes(0.0)
