"""A randomised low-rank approximation of A, for the Nyström solver and the Nyström preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.linear.base import Product


@dataclass(frozen=True)
class Sketch:
    """A ≈ U diag(λ) Uᵀ + floor·I, with orthonormal columns U."""

    vectors: Tensor  # U [task, param, rank]
    values: Tensor  # λ [task, rank], at least 0
    floor: Tensor  # [task, 1]; positive unless A has a direction of negative or no curvature

    def definite(self) -> Tensor:
        """Whether the approximation is positive definite beyond rounding ``[task, 1]``."""
        return self.floor > 10 * torch.finfo(self.floor.dtype).eps * self.values.amax(1, keepdim=True)

    def inverse_times(self, r: Tensor) -> Tensor:
        """The inverse of the approximation times ``r [task, param]``, by the Woodbury identity."""
        inside = torch.einsum("tpr,tp->tr", self.vectors, r)
        return (
            r - torch.einsum("tpr,tr->tp", self.vectors, inside * self.values / (self.values + self.floor))
        ) / self.floor


def sketch(product: Product, like: Tensor, rank: int, seed: int) -> Sketch:
    """Nyström's approximation of A − floor·I from ``rank`` products with A along random orthonormal directions Ω.

        A ≈ Y W⁺ Yᵀ + floor·I,   Y = (A − floor·I) Ω,   W = Ωᵀ Y

    The floor is the smallest eigenvalue of ΩᵀA Ω: at least the smallest of A, and equal to it where A is a multiple of
    the identity plus a matrix of rank below ``rank``; so λ need not be told, and cannot disagree. Tasks whose products
    are not finite get A = I.

    Source: Frangella, Tropp, Udell (2023), "Randomized Nyström preconditioning", algorithm 2.1, with W⁺ in place
    of a Cholesky factor, as W is singular by the choice of the floor.
    """
    params = like.shape[1]
    rank = min(rank, params)
    # Drawn on the CPU: the same on every device. The same for all tasks, so that chunks do not matter.
    generator = torch.Generator().manual_seed(seed)
    omega = torch.linalg.qr(torch.randn(params, rank, dtype=torch.float64, generator=generator)).Q.to(like)
    y = torch.stack([product(column.expand_as(like)) for column in omega.T], dim=2)
    y = torch.where(y.isfinite().flatten(1).all(1).view(-1, 1, 1), y, omega)
    core = omega.T @ y
    ritz, basis = torch.linalg.eigh((core + core.mT) / 2)
    floor = ritz[:, :1]
    weights = ritz - floor
    keep = weights > 10 * rank * torch.finfo(like.dtype).eps * ritz.abs().amax(1, keepdim=True)
    scale = torch.where(keep, weights.rsqrt(), 0)
    # Y W⁺ Yᵀ = B Bᵀ.
    b = ((y - floor.unsqueeze(2) * omega) @ basis) * scale.unsqueeze(1)
    vectors, roots, _ = torch.linalg.svd(b, full_matrices=False)
    return Sketch(vectors, roots.square(), floor)
