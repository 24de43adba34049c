"""The regulariser against matrices written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from imaml_lightning.adaptation import FirstOrder, Implicit, MAMLPlusPlus, Reptile, Unrolled
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.proximal import ProximalTerm


def fitted(term: ProximalTerm, features: int = 5) -> tuple[ProximalTerm, FlatNetwork]:
    torch.manual_seed(0)
    network = FlatNetwork(nn.Linear(features, 1).double())
    term.fit_to(network)
    return term.double(), network


@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
@pytest.mark.parametrize("strength", [1e-6, 2.0, 50.0])
def test_diagonal_strengths(per: str, strength: float) -> None:
    term, network = fitted(ProximalTerm(strength, per, learn=True))
    phi, theta = torch.randn(3, 6, dtype=torch.float64), network.vector().detach()
    expected = 0.5 * strength * (phi - theta).square().sum(1)
    torch.testing.assert_close(term(phi, theta), expected, rtol=1e-5, atol=0)
    assert term.raw.numel() == {"network": 1, "tensor": 2, "parameter": 6}[per]


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: ProximalTerm(0.0), "strength"),
        (lambda: ProximalTerm(math.inf), "strength"),
    ],
)
def test_bad_options_are_named(build, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        build()


@pytest.mark.parametrize(
    ("member", "strength"), [(Implicit, 2.0), (FirstOrder, 2.0), (Unrolled, 0), (Reptile, 0), (MAMLPlusPlus, 0)]
)
def test_none_is_the_regulariser_of_the_source(member: type, strength: float) -> None:
    assert member(proximal=None).proximal.strength().item() == pytest.approx(strength)
