"""The meta-gradient of every combination of solvers that claims convergence, against dense algebra."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from cases import INNER_SOLVERS, LINEAR_SOLVERS
from oracles import Problem, dense_meta_gradient
from tiny_learners import implicit, learner, points, problems, smooth_mlp
from torch import Tensor, nn
from torch.func import grad, hessian

from imaml_lightning.adaptation import Implicit
from imaml_lightning.inner import (
    BlackBox,
    GradientDescent,
    InnerSolver,
)
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.linear import (
    Dense,
    LinearSolver,
)
from imaml_lightning.problem.curvature import Curvature, FiniteDifference, GaussNewton, Hessian
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.solution import Result, Solution

EPISODE = points(tasks=2)
STRENGTH = 2.0
CURVATURES: dict[str, Curvature] = {
    "hessian": Hessian(),
    "gauss_newton": GaussNewton(),
    "finite_difference": FiniteDifference(),
}


@dataclass(frozen=True)
class Found(InnerSolver):
    """An inner solver that has its solution already."""

    solution: Solution

    def minimise(self, objective: InnerObjective, start: Tensor) -> Solution:
        return self.solution


def built(inner: InnerSolver, linear: LinearSolver, curvature: Curvature) -> MetaLearner:
    """The same learner, random numbers and all, with these solvers."""
    adaptation = implicit(strength=STRENGTH)
    return learner(smooth_mlp(), Implicit(inner, linear, curvature, adaptation.proximal), nn.MSELoss())


@cache
def found(name: str) -> Solution:
    solver = INNER_SOLVERS[name]
    return built(solver, LINEAR_SOLVERS["cg"], CURVATURES["hessian"]).adapted(EPISODE.support).inner


def network_part(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for name, g in gradient.items() if name.startswith("network.")])


@dataclass
class Reference:
    """What dense algebra says of one task at a given φ."""

    gradient: Tensor
    gain: float  # the error of the meta-gradient is at most this times the relative residual of the linear solve


@cache
def references(name: str, gauss_newton: bool) -> list[Reference]:
    model = built(INNER_SOLVERS[name], LINEAR_SOLVERS["cg"], CURVATURES["hessian"])
    m = {key: p.detach() for key, p in model.named_parameters()}

    def of(problem: Problem, phi: Tensor) -> Reference:
        matrix = problem.gauss_newton(phi, m) if gauss_newton else hessian(problem.inner)(phi, m)
        smallest = torch.linalg.eigvalsh(matrix)[0]
        assert smallest > 0
        v = grad(problem.outer)(phi, m)
        gradient = network_part(dense_meta_gradient(problem, m, phi, gauss_newton))
        return Reference(gradient, (problem.strength(m)[0] * v.norm() / smallest).item())

    return [of(problem, phi) for problem, phi in zip(problems(model, EPISODE), found(name).value, strict=True)]


@pytest.mark.parametrize("inner", INNER_SOLVERS)
def test_solutions_are_as_near_as_their_residuals_say(inner: str) -> None:
    model, solution = built(INNER_SOLVERS[inner], LINEAR_SOLVERS["cg"], CURVATURES["hessian"]), found(inner)
    assert (solution.result == Result.CONVERGED).all()
    m = {key: p.detach() for key, p in model.named_parameters()}
    for problem, phi, residual in zip(problems(model, EPISODE), solution.value, solution.residual, strict=True):
        exact = problem.solution(m)
        smallest = torch.linalg.eigvalsh(hessian(problem.inner)(exact, m))[0]
        # ‖φ − φ*‖ ≤ ‖∇G‖/μ, with some room because μ is the smallest curvature at φ* alone.
        assert (phi - exact).norm() <= 1.1 * residual / smallest


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("linear", LINEAR_SOLVERS)
@pytest.mark.parametrize("inner", INNER_SOLVERS)
def test_meta_gradient_is_within_the_bound_of_its_reported_errors(inner: str, linear: str, curvature: str) -> None:
    model = built(Found(found(inner)), LINEAR_SOLVERS[linear], CURVATURES[curvature])
    adapted = model.adapted(EPISODE.support)
    (model.judge(adapted.phi, EPISODE.query)["loss"].sum() / EPISODE.tasks).backward()
    assert (adapted.linear.result == Result.CONVERGED).all()

    actual = torch.cat([p.grad.flatten() for p in model.network.parameters()])
    dense = references(inner, curvature == "gauss_newton")
    expected = torch.stack([reference.gradient for reference in dense]).mean(0)
    # ‖λ A⁻¹ (A u − v)‖ ≤ λ/μ · residual · ‖v‖; differences know A itself to 1e-8 only.
    rounding = 1e-8 if curvature == "finite_difference" else 1e-12
    bounds = [r.gain * (residual.item() + rounding) for r, residual in zip(dense, adapted.linear.residual, strict=True)]
    assert (actual - expected).norm() <= 1.01 * sum(bounds) / len(bounds)


@pytest.mark.parametrize("method", ["TNC", "Newton-CG", "trust-exact", "function"])
def test_black_boxes_have_the_meta_gradient_of_gradient_descent(method: str) -> None:
    """φ* is all that counts: two ways to the same φ* have the same meta-gradient, and nothing saw the way."""

    def descend_in_numpy(value_and_gradient, start: Tensor) -> Tensor:
        phi = start.numpy()
        for _ in range(400):
            phi = phi - 0.1 * value_and_gradient(torch.from_numpy(phi))[1].numpy()
        return torch.from_numpy(phi)

    solvers = [
        BlackBox(descend_in_numpy if method == "function" else method, 200, 1e-6),
        GradientDescent(0.1, 400, 1e-12),
    ]
    gradients = []
    for solver in solvers:
        model = built(solver, Dense(), Hessian())
        adapted = model.adapted(EPISODE.support)
        assert (adapted.inner.result == Result.CONVERGED).all()
        (model.judge(adapted.phi, EPISODE.query)["loss"].sum() / EPISODE.tasks).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
