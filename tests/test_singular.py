"""Singular systems without a solution: every linear solver tells the truth, and none is led away from where it began."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import LINEAR_SOLVERS, System

from imaml_lightning.linear import ConjugateGradient, DiagonalPreconditioner, Minres, Neumann, NystromPreconditioner
from imaml_lightning.problem.solution import Result

SOLVERS = {
    **LINEAR_SOLVERS,
    "cg_long": ConjugateGradient(1000, 1e-10),
    "cg_diagonal_long": ConjugateGradient(1000, 1e-10, DiagonalPreconditioner()),
    "cg_nystrom_long": ConjugateGradient(1000, 1e-10, NystromPreconditioner(6)),
    "minres_long": Minres(1000, 1e-10),
    "neumann_long": Neumann(0.1, 1000, 1e-10),
}
SPECTRA = {
    "two zeros": np.concatenate([np.zeros(2), np.linspace(1, 8, 10)]),
    "one zero, else alike": np.concatenate([np.zeros(1), np.ones(11)]),
    "rank two": np.concatenate([np.zeros(10), [1.0, 5.0]]),
    "zero": np.zeros(12),
    "ill-conditioned beside zeros": np.concatenate([np.zeros(3), np.logspace(-2, 4, 9)]),
    "negative to rounding": np.concatenate([np.full(2, -1e-13), np.linspace(1, 8, 10)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("spectrum", list(SPECTRA))
@pytest.mark.parametrize("name", list(SOLVERS))
def test_what_broke_off_is_no_farther_than_where_it_began_and_says_how_far(
    name: str, spectrum: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        system = System.of(SPECTRA[spectrum], tasks=4, in_range=False, seed=seed)
        solution = SOLVERS[name].solve(*system.arguments(dtype))
        true, said = system.residual(solution.value), solution.residual.double().numpy()
        rounding = system.rounding(solution.value)
        assert (abs(true - said) <= 0.01 * true + 10 * rounding).all(), (true, said)
        broke = (solution.result == Result.BREAKDOWN) | (solution.result == Result.INDEFINITE)
        assert (true <= 1 + 10 * rounding)[broke.numpy()].all(), true
        assert not (solution.result == Result.CONVERGED).any()


def test_it_goes_back_to_the_nearest_point_it_has_been_at() -> None:
    system = System.of(SPECTRA["two zeros"], tasks=4, in_range=False)
    # What no solver can remove is v's part outside A's range; the rest is nearly gone before it runs away.
    matrix, rhs = torch.tensor(system.matrix), torch.tensor(system.rhs)
    least = (matrix @ torch.linalg.pinv(matrix) @ rhs[..., None])[..., 0] - rhs
    share = (least.norm(dim=1) / rhs.norm(dim=1)).numpy()
    for solver in (ConjugateGradient(60, 1e-6), Minres(60, 1e-6)):
        solution = solver.solve(*system.arguments(torch.float64))
        assert (solution.result == Result.BREAKDOWN).all()
        assert (system.residual(solution.value) <= 1.0).all()
        assert (system.residual(solution.value) >= share - 1e-9).all()
    minres = Minres(60, 1e-6).solve(*system.arguments(torch.float64))
    np.testing.assert_allclose(system.residual(minres.value), share, rtol=1e-4)
