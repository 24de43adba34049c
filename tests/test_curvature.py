"""Products of every curvature against dense matrices that torch.func builds from a second statement of G."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from oracles import Problem
from tiny_learners import images, implicit, learner, points, problems, smooth_conv, smooth_mlp
from torch import Tensor, nn
from torch.func import hessian

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.curvature import Curvature, FiniteDifference, GaussNewton, Hessian, ReleasedCode
from imaml_lightning.problem.objective import InnerObjective

CASES = {
    "images": lambda: (learner(smooth_conv(), implicit()), images()),
    "regression": lambda: (learner(smooth_mlp(), implicit(strength=2.0), nn.MSELoss()), points()),
}


def released(problem: Problem, phi: Tensor, m: dict[str, Tensor]) -> Tensor:
    """λ (2 I + ∇²L_S/(λ + 10)); in the authors' terms (2 I + H/(λ + 10)) u' = v with u' = λ u."""
    strength = problem.strength(m)[0]
    support = hessian(lambda at: problem.loss(at, m, problem.support))(phi)
    return strength * (2 * torch.eye(len(phi)) + support / (strength + 10))


MATRICES = {
    Hessian(): lambda problem, phi, m: hessian(problem.inner)(phi, m),
    GaussNewton(): lambda problem, phi, m: problem.gauss_newton(phi, m),
    FiniteDifference(): lambda problem, phi, m: hessian(problem.inner)(phi, m),
    ReleasedCode(): released,
}


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("curvature", MATRICES, ids=lambda c: type(c).__name__)
def test_products_are_those_of_a_dense_matrix(curvature: Curvature, case: str, damping: float) -> None:
    built, episode = CASES[case]()
    m = {name: p.detach() for name, p in built.named_parameters()}
    g = torch.Generator().manual_seed(3)
    theta = built.flat.vector().detach()
    phi = theta + 0.3 * torch.randn(episode.tasks, len(theta), generator=g, dtype=torch.float64)
    u = torch.randn(phi.shape, generator=g, dtype=torch.float64)
    objective = InnerObjective(
        built.flat, episode.support, built.flat.vector(), built.adaptation.proximal, built.criterion
    )
    actual = dataclasses.replace(curvature, damping=damping).product(objective.linearise(phi), u)
    for row, problem in enumerate(problems(built, episode)):
        matrix = MATRICES[curvature](problem, phi[row], m)
        expected = matrix @ u[row] + damping * u[row]
        rtol = 1e-7 if isinstance(curvature, FiniteDifference) else 1e-10
        assert (actual[row] - expected).norm() <= rtol * expected.norm()


def test_gauss_newton_has_no_negative_curvature() -> None:
    built, episode = CASES["images"]()
    objective = InnerObjective(
        built.flat, episode.support, built.flat.vector(), built.adaptation.proximal, built.criterion
    )
    g = torch.Generator().manual_seed(4)
    far = objective.start() + 5 * torch.randn(objective.start().shape, generator=g, dtype=torch.float64)
    at = objective.linearise(far)
    for _ in range(20):
        u = torch.randn(far.shape, generator=g, dtype=torch.float64)
        assert ((GaussNewton().product(at, u) * u).sum(1) > 0).all()


def test_finite_differences_of_zero_and_of_a_bad_task() -> None:
    built, episode = CASES["regression"]()
    episode.support.x[2] = torch.nan
    objective = InnerObjective(
        built.flat, episode.support, built.flat.vector(), built.adaptation.proximal, built.criterion
    )
    at = objective.linearise(objective.start())
    u = torch.ones_like(objective.start())
    u[0] = 0
    actual = FiniteDifference().product(at, u)
    assert (actual[0] == 0).all()
    assert actual[1].isfinite().all()


def test_released_code_needs_one_strength() -> None:
    built, episode = learner(smooth_conv(), implicit(per="tensor")), images()
    objective = InnerObjective(
        built.flat, episode.support, built.flat.vector(), built.adaptation.proximal, built.criterion
    )
    at = objective.linearise(objective.start())
    with pytest.raises(UsageError, match="ReleasedCode"):
        ReleasedCode().product(at, torch.ones_like(objective.start()))


def test_bad_damping_is_named() -> None:
    with pytest.raises(UsageError, match="damping"):
        FiniteDifference(damping=-1.0)
