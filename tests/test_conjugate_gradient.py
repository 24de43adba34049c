"""Conjugate gradients over random spectra, against dense solves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.problem.solution import Result, Solution

RULES = settings(derandomize=True, deadline=None, max_examples=40, database=None)
seeds = st.integers(0, 2**31 - 1)
positive = st.floats(-2, 2).map(lambda power: 10.0**power)
spectra = st.lists(st.lists(positive, min_size=6, max_size=6), min_size=1, max_size=4)


def matrices(eigenvalues: list[list[float]], seed: int) -> Tensor:
    """Symmetric matrices ``[task, 6, 6]`` of these eigenvalues, with random eigenvectors."""
    spectrum = torch.tensor(eigenvalues, dtype=torch.float64)
    normal = torch.randn(
        *spectrum.shape, spectrum.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    vectors = torch.linalg.qr(normal).Q
    return vectors * spectrum.unsqueeze(1) @ vectors.mT


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


class Product:
    """A u with its calls counted, and the rows noted that each call still asked about."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.asked = matrix, torch.zeros(len(matrix), dtype=torch.int64)

    def __call__(self, u: Tensor) -> Tensor:
        self.asked += (u != 0).any(1)
        return torch.einsum("tij,tj->ti", self.matrix, u)


def solve(matrix: Tensor, rhs: Tensor, max_steps: int = 60, rtol: float = 1e-9) -> Solution:
    product = Product(matrix)
    solution = ConjugateGradient(max_steps, rtol).solve(product, rhs)
    # A product that only measures the residual at the end is not a step, nor is one that confirms a point gone back to.
    assert ((product.asked >= solution.steps) & (product.asked <= solution.steps + 2)).all()
    assert solution.steps.max() <= max_steps
    return solution


def true_residual(matrix: Tensor, solution: Solution, rhs: Tensor) -> Tensor:
    return (torch.einsum("tij,tj->ti", matrix, solution.value) - rhs).norm(dim=1) / rhs.norm(dim=1)


@RULES
@given(spectra, seeds)
def test_easy_and_hard_tasks_together(eigenvalues: list[list[float]], seed: int) -> None:
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    solution = solve(matrix, rhs)
    assert solution.result.tolist() == [Result.CONVERGED] * len(rhs)
    residual = true_residual(matrix, solution, rhs)
    assert (residual <= 2e-9).all()
    torch.testing.assert_close(solution.residual, residual, rtol=1e-2, atol=1e-11)
    # The residual bounds the error by the condition number.
    expected = torch.linalg.solve(matrix, rhs)
    condition = torch.tensor([max(e) / min(e) for e in eigenvalues], dtype=torch.float64)
    assert ((solution.value - expected).norm(dim=1) <= 2e-9 * condition * expected.norm(dim=1)).all()


@RULES
@given(spectra, seeds, st.integers(1, 5))
def test_step_limit_is_kept_and_told(eigenvalues: list[list[float]], seed: int, max_steps: int) -> None:
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    solution = solve(matrix, rhs, max_steps)
    residual = true_residual(matrix, solution, rhs)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-6, atol=1e-11)
    reached = torch.where(solution.residual <= 1e-9, Result.CONVERGED, Result.STEP_LIMIT)
    assert torch.equal(solution.result, reached)
    assert (solution.steps[reached == Result.STEP_LIMIT] == max_steps).all()


@RULES
@given(spectra, seeds, st.integers(1, 5))
def test_each_step_is_optimal_in_its_krylov_space(eigenvalues: list[list[float]], seed: int, steps: int) -> None:
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    solution = solve(matrix, rhs, steps, rtol=0.0)
    for a, v, u in zip(matrix, rhs, solution.value, strict=True):
        basis = [v]
        for _ in range(steps - 1):
            basis.append(a @ basis[-1] / (a @ basis[-1]).norm())
        span = torch.linalg.svd(torch.stack(basis, 1), full_matrices=False).U
        best = span @ torch.linalg.solve(span.T @ a @ span, span.T @ v)

        def energy(x: Tensor, a: Tensor = a, v: Tensor = v) -> Tensor:
            return 0.5 * x @ a @ x - v @ x

        assert abs(energy(u) - energy(best)) <= 1e-6 * abs(energy(best))


@RULES
@given(positive, seeds)
def test_multiple_of_the_identity_takes_one_step(scale: float, seed: int) -> None:
    rhs = vectors(3, seed)
    solution = solve(scale * torch.eye(6, dtype=torch.float64).expand(3, -1, -1), rhs)
    torch.testing.assert_close(solution.value, rhs / scale)
    assert solution.steps.tolist() == [1, 1, 1]


@RULES
@given(spectra, seeds)
def test_zero_right_hand_side_needs_no_step(eigenvalues: list[list[float]], seed: int) -> None:
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    rhs[0] = 0
    solution = solve(matrix, rhs)
    assert torch.equal(solution.value[0], rhs[0])
    assert (solution.result[0], solution.steps[0], solution.residual[0]) == (Result.CONVERGED, 0, 0)
    assert (solution.result == Result.CONVERGED).all()


@RULES
@given(spectra, seeds, st.integers(0, 5), positive)
def test_indefinite_system_is_noticed(eigenvalues: list[list[float]], seed: int, which: int, size: float) -> None:
    sound = matrices(eigenvalues, seed)
    eigenvalues = [list(eigenvalues[0]), *eigenvalues]
    eigenvalues[0][which] = -size
    matrix = torch.cat([matrices(eigenvalues[:1], seed), sound])
    rhs = vectors(len(matrix), seed)
    solution = solve(matrix, rhs)
    assert solution.value.isfinite().all()
    assert solution.result.tolist() == [Result.INDEFINITE] + [Result.CONVERGED] * len(sound)
    # What is returned is the iterate before the negative curvature, unless it is farther from a solution than 0 is.
    torch.testing.assert_close(solution.residual[0], true_residual(matrix, solution, rhs)[0], rtol=1e-6, atol=1e-11)
    before = int(solution.steps[0]) - 1
    earlier = solve(matrix[:1], rhs[:1], before).value[0] if before else torch.zeros(6, dtype=torch.float64)
    left = (matrix[0] @ earlier - rhs[0]).norm() / rhs[0].norm()
    if left <= 1 - 1e-9:
        torch.testing.assert_close(solution.value[0], earlier, rtol=1e-12, atol=1e-14)
    assert solution.residual[0] <= 1 + 1e-9


@RULES
@given(spectra, seeds, st.integers(1, 5))
def test_singular_system_is_never_called_solved(eigenvalues: list[list[float]], seed: int, rank: int) -> None:
    eigenvalues = [row[:rank] + [0.0] * (6 - rank) for row in eigenvalues]
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    solution = solve(matrix, rhs)
    assert solution.value.isfinite().all()
    # Which of the two it is called is decided by the rounding of a curvature of 0.
    assert all(code in (Result.BREAKDOWN, Result.INDEFINITE) for code in solution.result.tolist())


@RULES
@given(spectra, seeds, st.integers(1, 5))
def test_singular_but_consistent_system_is_solved(eigenvalues: list[list[float]], seed: int, rank: int) -> None:
    eigenvalues = [row[:rank] + [0.0] * (6 - rank) for row in eigenvalues]
    matrix = matrices(eigenvalues, seed)
    rhs = torch.einsum("tij,tj->ti", matrix, vectors(len(eigenvalues), seed))
    solution = solve(matrix, rhs)
    assert (solution.result == Result.CONVERGED).all()
    assert (true_residual(matrix, solution, rhs) <= 2e-9).all()


@RULES
@given(spectra, seeds, st.sampled_from([float("nan"), float("inf")]), st.booleans())
def test_broken_row_leaves_the_others_alone(
    eigenvalues: list[list[float]], seed: int, bad: float, in_matrix: bool
) -> None:
    matrix, rhs = matrices(eigenvalues, seed), vectors(len(eigenvalues), seed)
    matrix, rhs = torch.cat([matrix, matrix[:1]]), torch.cat([rhs, rhs[:1]])
    good = solve(matrix, rhs)  # of the same shape, since kernels may round by the shape
    matrix, rhs = matrix.clone(), rhs.clone()
    (matrix if in_matrix else rhs)[-1, 0] = bad
    solution = solve(matrix, rhs)
    assert solution.result[-1] == Result.NONFINITE
    assert torch.equal(solution.value[:-1], good.value[:-1])
    assert torch.equal(solution.result[:-1], good.result[:-1])
    assert torch.equal(solution.steps[:-1], good.steps[:-1])


def test_overflow_is_not_called_converged() -> None:
    # Curvature 1e-30 along v in float32: u = v / 1e-30 overflows for v of 1e15.
    solution = ConjugateGradient(1, 1e-3).solve(lambda u: 1e-30 * u, torch.full((1, 2), 1e15))
    assert solution.result[0] in (Result.NONFINITE, Result.BREAKDOWN)


@pytest.mark.parametrize(("options", "name"), [((0, 0.1), "max_steps"), ((5, 1.0), "rtol"), ((5, -0.1), "rtol")])
def test_bad_options(options: tuple[int, float], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        ConjugateGradient(*options)
