"""Every solver by name, and problems as data: spectra for linear solvers, quadratics for inner solvers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.inner import (
    LBFGS,
    Adam,
    BacktrackingGradientDescent,
    BarzilaiBorwein,
    BlackBox,
    GradientDescent,
    HeavyBall,
    HessianFree,
    InnerSolver,
    Nesterov,
)
from imaml_lightning.linear import (
    GMRES,
    ConjugateGradient,
    Dense,
    DiagonalPreconditioner,
    LinearSolver,
    Minres,
    Neumann,
    Nystrom,
    NystromPreconditioner,
)
from imaml_lightning.problem.curvature import Hessian
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm

SIZE = 12
SPECTRA: dict[str, Sequence[float]] = {
    "convex": np.linspace(1, 10, SIZE),
    "ill_conditioned": np.logspace(-3, 3, SIZE),
    "indefinite": np.concatenate([-np.linspace(1, 3, 4), np.linspace(1, 8, SIZE - 4)]),
    "singular": np.concatenate([np.zeros(2), np.linspace(1, 8, SIZE - 2)]),
    "shifted_low_rank": np.concatenate([np.full(SIZE - 3, 2.0), [20.0, 40.0, 60.0]]),
}


def descend(value_and_gradient, start: Tensor) -> Tensor:
    """A minimiser of the user's own."""
    phi = start
    for _ in range(200):
        phi = phi - 0.15 * value_and_gradient(phi)[1]
    return phi


INNER_SOLVERS: dict[str, InnerSolver] = {
    "gradient_descent": GradientDescent(0.1, 300, 1e-6),
    "backtracking": BacktrackingGradientDescent(1.0, 300, 1e-6),
    "barzilai_borwein": BarzilaiBorwein(0.1, 300, 1e-6),
    "heavy_ball": HeavyBall(0.1, 300, 1e-6, momentum=0.5),
    "nesterov": Nesterov(0.1, 300, 1e-6),
    "adam": Adam(0.05, 600, 1e-3, beta2=0.99),
    "lbfgs": LBFGS(max_steps=100, rtol=1e-6),
    "hessian_free": HessianFree(max_steps=100, rtol=1e-6),
    "hessian_free_newton": HessianFree(Hessian(), max_steps=100, rtol=1e-6),
    "scipy": BlackBox("L-BFGS-B", 100, 1e-6),
    "function": BlackBox(descend, rtol=1e-6),
}
LINEAR_SOLVERS: dict[str, LinearSolver] = {
    "cg": ConjugateGradient(60, 1e-6),
    "cg_diagonal": ConjugateGradient(60, 1e-6, DiagonalPreconditioner()),
    "cg_nystrom": ConjugateGradient(60, 1e-6, NystromPreconditioner(6)),
    "minres": Minres(60, 1e-6),
    "gmres": GMRES(60, 1e-6),
    "gmres_restarted": GMRES(200, 1e-6, restart=8),
    "neumann": Neumann(0.1, 300, 1e-6),
    "nystrom": Nystrom(30, 1e-6),
    "dense": Dense(1e-6),
}


def rotation(size: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@dataclass(frozen=True)
class System:
    """A u = v for several tasks in float64; the solver sees it in its own type, through products alone."""

    matrix: np.ndarray  # [task, param, param]
    rhs: np.ndarray  # [task, param]

    @staticmethod
    def of(spectrum: Sequence[float], tasks: int = 3, in_range: bool = True, seed: int = 0) -> System:
        """A with this spectrum in another basis for each task; v random, in the range of A if so asked."""
        spectrum = np.asarray(spectrum, dtype=float)
        q = np.stack([rotation(len(spectrum), seed + task) for task in range(tasks)])
        inside = np.random.default_rng(seed).normal(size=(tasks, len(spectrum)))
        inside = np.where(spectrum == 0, 0, inside) if in_range else inside
        return System(np.einsum("tij,j,tkj->tik", q, spectrum, q), np.einsum("tij,tj->ti", q, inside))

    def rows(self, rows: slice) -> System:
        return System(self.matrix[rows], self.rhs[rows])

    def arguments(self, dtype: torch.dtype):
        """``product`` and ``rhs`` for a solver."""
        matrix = torch.tensor(self.matrix, dtype=dtype)
        return (lambda u: torch.einsum("tij,tj->ti", matrix, u)), torch.tensor(self.rhs, dtype=dtype)

    def residual(self, u: Tensor) -> np.ndarray:
        """‖A u − v‖ / ‖v‖ in float64."""
        left = np.einsum("tij,tj->ti", self.matrix, u.double().numpy()) - self.rhs
        return np.linalg.norm(left, axis=1) / np.linalg.norm(self.rhs, axis=1)

    def rounding(self, u: Tensor) -> np.ndarray:
        """The error of a product A u computed in u's type, as a share of ‖v‖: what no solver can see."""
        size = np.linalg.norm(self.matrix, axis=(1, 2)) * u.double().norm(dim=1).numpy()
        return 4 * torch.finfo(u.dtype).eps * (1 + size / np.linalg.norm(self.rhs, axis=1))


class Quadratic(nn.Module):
    """A criterion: ½ Σ y z² − Σ z; with outputs z = Qφ its Hessian in φ is Qᵀ diag(y) Q, of any signs."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (0.5 * y * z.square() - z).sum()


class Linear(nn.Module):
    """z = x φ."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def quadratic(
    spectrum: Sequence[float], tasks: int = 3, dtype: torch.dtype = torch.float64, strength: float = 0.5
) -> tuple[InnerObjective, np.ndarray]:
    """G whose ∇²G has this spectrum, λ included, and its stationary points ``[task, param]`` by dense algebra."""
    spectrum = np.asarray(spectrum, dtype=float)
    size = len(spectrum)
    q = np.stack([rotation(size, task) for task in range(tasks)])
    theta = np.random.default_rng(7).normal(size=size)
    support = Examples(torch.tensor(q, dtype=dtype), torch.tensor(spectrum - strength, dtype=dtype).expand(tasks, -1))
    network = FlatNetwork(Linear(torch.tensor(theta, dtype=dtype)))
    objective = InnerObjective(network, support, network.vector(), ProximalTerm(strength).to(dtype), Quadratic())
    hessian = np.einsum("tji,j,tjk->tik", q, spectrum, q)
    right = q.transpose(0, 2, 1) @ np.ones(size) + strength * theta
    stationary = np.stack([np.linalg.lstsq(h, b, rcond=1e-12)[0] for h, b in zip(hessian, right, strict=True)])
    return objective, stationary


def rows_of(objective: InnerObjective, rows: slice) -> InnerObjective:
    """The objective of some of the tasks."""
    support = Examples(*(part[rows] for part in objective.support))
    return InnerObjective(objective.network, support, objective.theta, objective.proximal, objective.criterion)


def with_support(objective: InnerObjective, task: int, number: float) -> InnerObjective:
    """The same with one task's inputs replaced by ``number``, NaN say."""
    x = objective.support.x.clone()
    x[task] = number
    return InnerObjective(
        objective.network, Examples(x, objective.support.y), objective.theta, objective.proximal, objective.criterion
    )
