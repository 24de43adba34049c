"""The regulariser against matrices written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from imaml_lightning.adaptation import Implicit
from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import LBFGS
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.problem.curvature import Hessian
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import LowRankProximalTerm, ProximalTerm


def fitted(term: ProximalTerm, features: int = 5) -> tuple[ProximalTerm, FlatNetwork]:
    torch.manual_seed(0)
    network = FlatNetwork(nn.Linear(features, 1).double())
    term.fit_to(network)
    return term.double(), network


def matrix(term: LowRankProximalTerm, params: int) -> Tensor:
    strength = torch.log1p(torch.exp(term.raw)).repeat(params)[:params] if term.raw.numel() == 1 else term.strength()
    return torch.diag(strength) + term.factor @ term.factor.T


@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
@pytest.mark.parametrize("strength", [1e-6, 2.0, 50.0])
def test_diagonal_strengths(per: str, strength: float) -> None:
    term, network = fitted(ProximalTerm(strength, per, learn=True))
    phi, theta = torch.randn(3, 6, dtype=torch.float64), network.vector().detach()
    expected = 0.5 * strength * (phi - theta).square().sum(1)
    torch.testing.assert_close(term(phi, theta), expected, rtol=1e-5, atol=0)
    assert term.raw.numel() == {"network": 1, "tensor": 2, "parameter": 6}[per]


@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
def test_low_rank_matrix(per: str) -> None:
    term, network = fitted(LowRankProximalTerm(2.0, per, learn=True, rank=2, spread=0.3))
    theta = network.vector().detach()
    phi = theta + torch.randn(3, 6, dtype=torch.float64)
    lam = matrix(term, 6)
    expected = 0.5 * torch.einsum("ti,ij,tj->t", phi - theta, lam, phi - theta)
    torch.testing.assert_close(term(phi, theta), expected)
    assert [p.requires_grad for p in term.parameters()] == [True, True]
    with torch.no_grad():
        term.factor.mul_(-100)
        term.raw.sub_(30)
    # λ is 1e-13 of ‖U‖² here, so that definite is what is definite to rounding: eigenvalues are known to eps ‖Λ‖ only.
    eigenvalues = torch.linalg.eigvalsh(matrix(term, 6))
    assert eigenvalues.min() > -6 * torch.finfo(torch.float64).eps * eigenvalues.max()
    assert term.strength().min() > 0


def test_low_rank_matrix_is_meta_learned_by_the_implicit_formula() -> None:
    """For a linear model under squared error φ* and its derivatives by finite differences of a dense solve."""
    term, network = fitted(LowRankProximalTerm(1.5, learn=True, rank=2, spread=1.0), features=4)
    g = torch.Generator().manual_seed(2)
    x, xq = (torch.randn(7, 5, generator=g, dtype=torch.float64) for _ in range(2))
    y, yq = (torch.randn(7, 1, generator=g, dtype=torch.float64) for _ in range(2))
    x[:, 4] = xq[:, 4] = 1

    def query_loss(lam: Tensor) -> float:
        theta = network.vector().detach()
        phi = torch.linalg.solve(2 * x.T @ x / 7 + lam, 2 * x.T @ y[:, 0] / 7 + lam @ theta)
        return (xq @ phi - yq[:, 0]).square().mean().item()

    objective = InnerObjective(network, Examples(x[None, :, :4], y[None]), network.vector(), term, nn.MSELoss())
    adaptation = Implicit(LBFGS(max_steps=60, rtol=1e-9), ConjugateGradient(60, 1e-12), Hessian(), term)
    phi = adaptation(objective).phi[0]
    (xq @ phi - yq[:, 0]).square().mean().backward()

    h = 1e-5
    for index in [(0, 0), (3, 1)]:
        losses = []
        for sign in (1, -1):
            moved = term.factor.detach().clone()
            moved[index] += sign * h
            losses.append(query_loss(term.strength().detach() * torch.eye(5) + moved @ moved.T))
        assert term.factor.grad[index].item() == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: ProximalTerm(0.0), "strength"),
        (lambda: LowRankProximalTerm(math.inf), "strength"),
        (lambda: LowRankProximalTerm(rank=0), "rank"),
        (lambda: LowRankProximalTerm(spread=-1.0), "spread"),
    ],
)
def test_bad_options_are_named(build, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        build()
