"""Every linear solver against dense algebra and SciPy, on every kind of system."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from cases import LINEAR_SOLVERS, SIZE, SPECTRA, System
from hypothesis import given, settings
from hypothesis import strategies as st

from imaml_lightning import linear
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.solution import Result, Solution

SOLVERS: dict[str, linear.LinearSolver] = {name: replace(solver, rtol=1e-4) for name, solver in LINEAR_SOLVERS.items()}
SOLVERS["nystrom_low_rank"] = linear.Nystrom(rank=6)
CONVEX = list(LINEAR_SOLVERS)
DTYPES = [torch.float32, torch.float64]
each_solver = pytest.mark.parametrize("name", SOLVERS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def scipy_gmres(a: np.ndarray, v: np.ndarray, rtol: float, maxiter: int) -> tuple[np.ndarray, int]:
    """SciPy counts restarts where the others count products."""
    return scipy.sparse.linalg.gmres(a, v, rtol=rtol, restart=maxiter, maxiter=1)


def codes(solution: Solution) -> list[Result]:
    return [Result(int(code)) for code in solution.result]


def check_claims(system: System, solution: Solution) -> None:
    """What holds of every answer: finite numbers, a true residual, CONVERGED where and only where it is met."""
    u = solution.value
    assert u.isfinite().all()
    assert solution.residual.isfinite().all()
    true, rounding = system.residual(u), system.rounding(u)
    reported, tolerance = solution.residual.double().numpy(), solution.tolerance.double().numpy()
    np.testing.assert_array_less(abs(reported - true), 0.1 * true + rounding + 1e-30)
    converged = (solution.result == Result.CONVERGED).numpy()
    assert (true[converged] <= 1.1 * tolerance[converged] + rounding[converged]).all()
    assert (reported[solution.result.numpy() == Result.STEP_LIMIT] > tolerance[0]).all()


@each_dtype
@each_solver
@pytest.mark.parametrize("in_range", [True, False])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_claims_are_true(name: str, spectrum: str, in_range: bool, dtype: torch.dtype) -> None:
    system = System.of(SPECTRA[spectrum], in_range=in_range)
    check_claims(system, SOLVERS[name].solve(*system.arguments(dtype)))


@each_dtype
@pytest.mark.parametrize("name", CONVEX)
def test_convex_systems_are_solved(name: str, dtype: torch.dtype) -> None:
    system = System.of(SPECTRA["convex"])
    solution = SOLVERS[name].solve(*system.arguments(dtype))
    assert codes(solution) == [Result.CONVERGED] * 3
    exact = np.linalg.solve(system.matrix, system.rhs[:, :, None])[:, :, 0]
    error = np.linalg.norm(solution.value.double().numpy() - exact, axis=1)
    # ‖A⁻¹‖ = 1.
    assert (error <= 1.2e-4 * np.linalg.norm(system.rhs, axis=1)).all()


@pytest.mark.parametrize(
    ("name", "spectrum", "in_range", "expected"),
    [
        ("cg", "ill_conditioned", True, Result.CONVERGED),
        ("cg_diagonal", "ill_conditioned", True, Result.CONVERGED),
        ("cg_nystrom", "ill_conditioned", True, Result.CONVERGED),
        ("minres", "ill_conditioned", True, Result.CONVERGED),
        ("dense", "ill_conditioned", True, Result.CONVERGED),
        ("neumann", "ill_conditioned", True, Result.BREAKDOWN),
        ("cg", "indefinite", True, Result.INDEFINITE),
        ("minres", "indefinite", True, Result.CONVERGED),
        ("dense", "indefinite", True, Result.CONVERGED),
        ("nystrom", "indefinite", True, Result.INDEFINITE),
        ("cg", "singular", True, Result.CONVERGED),
        ("minres", "singular", True, Result.CONVERGED),
        ("gmres", "ill_conditioned", True, Result.CONVERGED),
        ("gmres", "indefinite", True, Result.CONVERGED),
        ("gmres_restarted", "indefinite", True, Result.CONVERGED),
        ("gmres", "singular", True, Result.CONVERGED),
        ("gmres", "singular", False, Result.BREAKDOWN),
        ("cg", "singular", False, Result.BREAKDOWN),
        ("minres", "singular", False, Result.BREAKDOWN),
        ("dense", "singular", False, Result.BREAKDOWN),
        ("nystrom", "singular", False, Result.BREAKDOWN),
        ("nystrom_low_rank", "shifted_low_rank", True, Result.CONVERGED),
    ],
)
def test_codes(name: str, spectrum: str, in_range: bool, expected: Result) -> None:
    system = System.of(SPECTRA[spectrum], in_range=in_range)
    assert codes(SOLVERS[name].solve(*system.arguments(torch.float64))) == [expected] * 3


@pytest.mark.parametrize("name", ["minres", "dense"])
def test_singular_systems_get_a_least_squares_solution(name: str) -> None:
    system = System.of(SPECTRA["singular"], in_range=False)
    solution = SOLVERS[name].solve(*system.arguments(torch.float64))
    best = np.stack([np.linalg.lstsq(a, v, rcond=1e-10)[0] for a, v in zip(system.matrix, system.rhs, strict=True)])
    np.testing.assert_allclose(solution.residual.numpy(), system.residual(torch.tensor(best)), rtol=1e-6)


@each_dtype
@each_solver
def test_zero_right_hand_side(name: str, dtype: torch.dtype) -> None:
    product, rhs = System.of(SPECTRA["convex"]).arguments(dtype)
    rhs[1] = 0
    solution = SOLVERS[name].solve(product, rhs)
    assert (solution.value[1] == 0).all()
    assert solution.residual[1] == 0
    assert solution.result[1] == Result.CONVERGED
    assert solution.value[[0, 2]].ne(0).all()


@pytest.mark.parametrize("where", ["rhs", "matrix"])
@each_dtype
@each_solver
def test_a_bad_task_harms_no_other(name: str, dtype: torch.dtype, where: str) -> None:
    system = System.of(SPECTRA["convex"])
    good = SOLVERS[name].solve(*system.arguments(dtype))  # of the same shape, since kernels may round by the shape
    bad = System(system.matrix.copy(), system.rhs.copy())
    (bad.rhs if where == "rhs" else bad.matrix)[2] = np.nan
    solution = SOLVERS[name].solve(*bad.arguments(dtype))
    assert solution.result[2] == Result.NONFINITE
    assert solution.value.isfinite().all()
    assert codes(solution)[:2] == codes(good)[:2]
    torch.testing.assert_close(solution.value[:2], good.value[:2])
    assert torch.equal(solution.steps[:2], good.steps[:2])


@each_solver
@pytest.mark.parametrize("spectrum", ["convex", "indefinite", "shifted_low_rank"])
def test_chunks_do_not_matter(name: str, spectrum: str) -> None:
    system = System.of(SPECTRA[spectrum], tasks=4)
    together = SOLVERS[name].solve(*system.arguments(torch.float64))
    for size in (1, 3):
        parts = [
            SOLVERS[name].solve(*system.rows(slice(first, first + size)).arguments(torch.float64))
            for first in range(0, 4, size)
        ]
        torch.testing.assert_close(torch.cat([p.value for p in parts]), together.value, rtol=1e-8, atol=1e-10)
        assert torch.equal(torch.cat([p.result for p in parts]), together.result)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize(
    ("solver", "reference", "spectrum"),
    [
        (linear.ConjugateGradient, scipy.sparse.linalg.cg, "convex"),
        (linear.Minres, scipy.sparse.linalg.minres, "indefinite"),
        (linear.GMRES, scipy_gmres, "indefinite"),
    ],
)
def test_iterates_are_those_of_scipy(solver: type, reference, spectrum: str, steps: int) -> None:
    system = System.of(SPECTRA[spectrum])
    solution = solver(steps, 0.0).solve(*system.arguments(torch.float64))
    expected = [reference(a, v, rtol=1e-300, maxiter=steps)[0] for a, v in zip(system.matrix, system.rhs, strict=True)]
    np.testing.assert_allclose(solution.value.numpy(), np.stack(expected), rtol=1e-8, atol=1e-10)


def test_a_claim_that_rounding_made_is_withdrawn() -> None:
    """In float32 with κ = 1e5 the recurrence of CG reaches 1e-6, the truth does not: no task may claim it."""
    system = System.of(np.logspace(-2.5, 2.5, SIZE))
    solution = linear.ConjugateGradient(200, 1e-6).solve(*system.arguments(torch.float32))
    true = system.residual(solution.value)
    assert (true > 1e-6).any()
    assert (solution.result != Result.CONVERGED).numpy()[true > 1.1e-6 + system.rounding(solution.value)].all()
    assert (solution.steps <= 200).all()


@each_dtype
@pytest.mark.parametrize("name", ["gmres", "gmres_restarted", "dense"])
def test_systems_that_are_not_symmetric(name: str, dtype: torch.dtype) -> None:
    """A = 2 I + a random matrix of norm about 1, and a rotation of the plane, whose symmetric part is 0."""
    generator = np.random.default_rng(0)
    matrix = 2 * np.eye(SIZE) + generator.normal(size=(3, SIZE, SIZE)) / SIZE**0.5 / 2
    matrix[2] = np.kron(np.eye(SIZE // 2), [[0, 1], [-1, 0]])
    system = System(matrix, generator.normal(size=(3, SIZE)))
    solution = SOLVERS[name].solve(*system.arguments(dtype))
    check_claims(system, solution)
    assert codes(solution) == [Result.CONVERGED] * 3
    assert name == "dense" or solution.steps[2] == 2  # two eigenvalues


def test_preconditioners_save_steps() -> None:
    spread = System.of(SPECTRA["shifted_low_rank"])
    product, rhs = spread.arguments(torch.float64)
    assert (SOLVERS["cg"].solve(product, rhs).steps > SOLVERS["cg_nystrom"].solve(product, rhs).steps).all()
    diagonal = torch.tensor(SPECTRA["ill_conditioned"])
    one = linear.ConjugateGradient(60, preconditioner=linear.DiagonalPreconditioner(probes=1))
    # The diagonal of a diagonal matrix needs one probe; only entries below a hundredth of the mean are not matched.
    assert (one.solve(lambda u: diagonal.clamp(min=5) * u, rhs).steps == 1).all()


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    spectrum=st.lists(st.floats(-3, 3).map(lambda e: 10**e), min_size=2, max_size=9),
    signs=st.lists(st.sampled_from([1, 1, 1, -1, 0]), min_size=9, max_size=9),
    double=st.booleans(),
)
def test_claims_are_true_of_any_spectrum(spectrum: list[float], signs: list[int], double: bool) -> None:
    values = [size * sign for size, sign in zip(spectrum, signs, strict=False)]
    if any(values):
        system = System.of(values, tasks=2)
        for solver in SOLVERS.values():
            check_claims(system, solver.solve(*system.arguments(torch.float64 if double else torch.float32)))


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: linear.ConjugateGradient(max_steps=0), "max_steps"),
        (lambda: linear.Minres(rtol=1.0), "rtol"),
        (lambda: linear.Neumann(lr=0.0), "lr"),
        (lambda: linear.Nystrom(rank=0), "rank"),
        (lambda: linear.Dense(rtol=-1.0), "rtol"),
        (lambda: linear.DiagonalPreconditioner(probes=0), "probes"),
        (lambda: linear.NystromPreconditioner(rank=0), "rank"),
        (lambda: linear.GMRES(restart=0), "restart"),
    ],
)
def test_bad_options_are_named(build, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        build()
