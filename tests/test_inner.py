"""Every inner solver against dense algebra, SciPy and torch's own optimizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import INNER_SOLVERS, SPECTRA, quadratic, rows_of, with_support
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imaml_lightning import inner as solvers
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.solution import Result, Solution

RTOL = 1e-3


SOLVERS: dict[str, solvers.InnerSolver] = {name: replace(solver, rtol=RTOL) for name, solver in INNER_SOLVERS.items()}
MONOTONE = ["backtracking", "lbfgs", "hessian_free", "hessian_free_newton"]
each_solver = pytest.mark.parametrize("name", SOLVERS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def solve(name: str, objective: InnerObjective, max_steps: int | None = None) -> Solution:
    solver = SOLVERS[name] if max_steps is None else replace(SOLVERS[name], max_steps=max_steps)
    return solver.minimise(objective, objective.start())


def stationarity(objective: InnerObjective, phi: Tensor) -> Tensor:
    return objective.value_and_gradient(phi)[1].norm(dim=1)


def check_claims(objective: InnerObjective, solution: Solution) -> None:
    """A finite φ, and CONVERGED only where ‖∇G‖ there is within the tolerance."""
    assert solution.value.isfinite().all()
    true, first = stationarity(objective, solution.value), stationarity(objective, objective.start())
    torch.testing.assert_close(solution.tolerance, RTOL * first)
    converged = solution.result == Result.CONVERGED
    assert (true[converged] <= 1.01 * solution.tolerance[converged]).all()


@each_dtype
@each_solver
def test_strongly_convex_problems_are_solved(name: str, dtype: torch.dtype) -> None:
    objective, exact = quadratic(SPECTRA["convex"], dtype=dtype)
    solution = solve(name, objective)
    check_claims(objective, solution)
    assert (solution.result == Result.CONVERGED).all()
    # The smallest curvature is 1.
    error = np.linalg.norm(solution.value.double().numpy() - exact, axis=1)
    assert (error <= 1.02 * solution.tolerance.double().numpy()).all()


@each_dtype
@each_solver
@pytest.mark.parametrize("spectrum", ["ill_conditioned", "indefinite", "singular"])
def test_claims_are_true_where_there_is_no_minimiser_in_reach(name: str, spectrum: str, dtype: torch.dtype) -> None:
    objective, _ = quadratic(SPECTRA[spectrum], dtype=dtype)
    solution = solve(name, objective, 25)
    check_claims(objective, solution)
    if spectrum == "indefinite":
        assert (solution.result != Result.CONVERGED).all()


@pytest.mark.parametrize("number", [float("nan"), 1e30], ids=["nan", "overflow"])
@each_dtype
@each_solver
def test_a_bad_task_harms_no_other(name: str, dtype: torch.dtype, number: float) -> None:
    objective, _ = quadratic(SPECTRA["convex"], dtype=dtype)
    good = solve(name, objective, 25)  # of the same shape, since kernels may round by the shape
    solution = solve(name, with_support(objective, 2, number), 25)
    assert solution.value.isfinite().all()
    assert solution.result[2] != Result.CONVERGED or number == 1e30
    if number != number:
        assert solution.result[2] == Result.NONFINITE
        assert torch.equal(solution.value[2], objective.start()[2])
    torch.testing.assert_close(solution.value[:2], good.value[:2])
    assert torch.equal(solution.result[:2], good.result[:2])
    assert torch.equal(solution.steps[:2], good.steps[:2])


@each_solver
@pytest.mark.parametrize("spectrum", ["convex", "indefinite"])
def test_chunks_do_not_matter(name: str, spectrum: str) -> None:
    objective, _ = quadratic(SPECTRA[spectrum], tasks=4)
    together = solve(name, objective, 12)
    alone = [solve(name, rows_of(objective, slice(task, task + 1)), 12) for task in range(4)]
    value = torch.cat([part.value for part in alone])
    # Where a task runs away, rounding grows with it.
    rtol = 1e-8 if spectrum == "convex" else 1e-2
    assert ((value - together.value).norm(dim=1) <= rtol * together.value.norm(dim=1)).all()
    assert torch.equal(torch.cat([part.result for part in alone]), together.result)


@each_solver
def test_a_start_at_the_minimiser_stays_there(name: str) -> None:
    objective, exact = quadratic(SPECTRA["convex"])
    solution = SOLVERS[name].minimise(objective, torch.tensor(exact))
    np.testing.assert_allclose(solution.value.numpy(), exact, atol=1e-6 if name != "adam" else 0.2)


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("spectrum", ["convex", "indefinite"])
def test_line_searches_never_go_uphill(name: str, spectrum: str) -> None:
    objective, _ = quadratic(SPECTRA[spectrum])
    solver, values = type(SOLVERS[name]), [objective.value(objective.start())]
    for steps in range(1, 8):
        values.append(objective.value(solver(max_steps=steps).minimise(objective, objective.start()).value))
        assert (values[-1] <= values[-2]).all()


class Misled(nn.Module):
    """A criterion Σ z² whose gradient has the wrong sign, so that every step against it leads uphill."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        loss = z.square().sum()
        return 2 * loss.detach() - loss


@pytest.mark.parametrize("name", MONOTONE)
def test_a_line_search_that_finds_no_lower_point_says_so(name: str) -> None:
    right, _ = quadratic(SPECTRA["convex"])
    objective = InnerObjective(right.network, right.support, right.theta, right.proximal, Misled())
    solution = solve(name, objective)
    assert (solution.result == Result.STALLED).all()
    assert torch.equal(solution.value, objective.start())


@pytest.mark.parametrize(
    ("solver", "optimizer"),
    [
        (solvers.GradientDescent(0.05, 9), lambda p: torch.optim.SGD(p, lr=0.05)),
        (solvers.HeavyBall(0.05, 9, momentum=0.8), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)),
        (solvers.Adam(0.05, max_steps=9), lambda p: torch.optim.Adam(p, lr=0.05)),
    ],
    ids=["gradient_descent", "heavy_ball", "adam"],
)
def test_iterates_are_those_of_torch(solver: solvers.InnerSolver, optimizer) -> None:
    objective, _ = quadratic(SPECTRA["convex"])
    phi = objective.start().clone().requires_grad_()
    stepper = optimizer([phi])
    for _ in range(9):
        stepper.zero_grad()
        objective.value(phi).sum().backward(inputs=[phi])
        stepper.step()
    torch.testing.assert_close(solver.minimise(objective, objective.start()).value, phi.detach())


@pytest.mark.parametrize(
    "solver",
    [solvers.GradientDescent(1.0, 2000, RTOL), solvers.Nesterov(1.0, 2000, RTOL)],
    ids=lambda s: type(s).__name__,
)
def test_divergence_ends_at_the_last_finite_point(solver: solvers.InnerSolver) -> None:
    objective, _ = quadratic(SPECTRA["convex"], dtype=torch.float32)
    solution = solver.minimise(objective, objective.start())
    assert (solution.result == Result.NONFINITE).all()
    assert objective.value_and_gradient(solution.value)[1].isfinite().all()
    assert (solution.steps < 2000).all()


@pytest.mark.parametrize("method", ["BFGS", "Newton-CG", "trust-exact", "Powell", "TNC"])
def test_black_box_takes_any_method_of_scipy(method: str) -> None:
    objective, exact = quadratic([1.0, 4.0], tasks=2)
    solution = solvers.BlackBox(method, 200, 1e-4).minimise(objective, objective.start())
    np.testing.assert_allclose(solution.value.numpy(), exact, atol=1e-3)
    assert (solution.result == Result.CONVERGED).all()
    assert (solution.steps > 0).all()


def test_black_box_refuses_what_is_not_finite() -> None:
    objective, _ = quadratic(SPECTRA["convex"])
    solution = solvers.BlackBox(lambda _, start: start + torch.inf).minimise(objective, objective.start())
    assert (solution.result == Result.NONFINITE).all()
    assert torch.equal(solution.value, objective.start())


@settings(deadline=None, derandomize=True, max_examples=3)
@given(spectrum=st.lists(st.floats(-1.5, 1).map(lambda e: 10**e), min_size=1, max_size=5), flip=st.booleans())
def test_claims_are_true_of_any_spectrum(spectrum: list[float], flip: bool) -> None:
    objective, _ = quadratic([-spectrum[0] if flip else spectrum[0], *spectrum[1:]], tasks=2)
    for name in SOLVERS:
        check_claims(objective, solve(name, objective, 12))


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: solvers.GradientDescent(lr=-1.0), "lr"),
        (lambda: solvers.BacktrackingGradientDescent(max_steps=-1), "max_steps"),
        (lambda: solvers.BarzilaiBorwein(rtol=1.0), "rtol"),
        (lambda: solvers.HeavyBall(momentum=1.0), "momentum"),
        (lambda: solvers.Nesterov(lr=float("nan")), "lr"),
        (lambda: solvers.Adam(beta2=1.0), "beta2"),
        (lambda: solvers.LBFGS(history=0), "history"),
        (lambda: solvers.HessianFree(damping=0.0), "damping"),
        (lambda: solvers.BlackBox("gradient magic"), "gradient magic"),
    ],
)
def test_bad_options_are_named(build, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        build()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("method", ["CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP", "Newton-CG", "trust-ncg", "trust-exact"])
def test_scipy_ends_at_the_first_point_that_meets_the_tolerance_or_says_that_it_stalled(
    method: str, dtype: torch.dtype
) -> None:
    objective, _ = quadratic(SPECTRA["convex"], dtype=dtype)
    for rtol, enough in ((1e-2, True), (1e-12, False)):
        solution = solvers.BlackBox(method, 500, rtol).minimise(objective, objective.start())
        met = solution.residual <= solution.tolerance
        assert torch.equal(met, solution.result == Result.CONVERGED)
        assert (
            met | (solution.result == Result.STALLED)
        ).all()  # long before 500 steps, so raising them would not help
        assert met.all() or not enough
        slope = objective.value_and_gradient(solution.value)[1].norm(dim=1)
        torch.testing.assert_close(slope, solution.residual, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:COBYLA")  # SciPy 1.16 raises the limit of three evaluations, and says so
@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA"])
def test_scipy_without_gradients_ends_by_its_steps_or_stalls(method: str) -> None:
    objective, _ = quadratic(SPECTRA["convex"][:3])
    short = solvers.BlackBox(method, 3, 1e-6).minimise(objective, objective.start())
    assert (short.result == Result.STEP_LIMIT).all()
