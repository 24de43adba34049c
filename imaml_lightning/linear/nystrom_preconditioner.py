"""A low-rank approximation of A as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least
from imaml_lightning.linear.base import Product
from imaml_lightning.linear.preconditioner import Preconditioner
from imaml_lightning.linear.sketch import sketch


@dataclass(frozen=True)
class NystromPreconditioner(Preconditioner):
    """M = U diag(λ) Uᵀ + floor·I, the randomised Nyström approximation of A ``[task, param, param]`` of rank ``rank``.

    Takes about the ``rank`` largest eigenvalues of A out of conjugate gradients' way: worth its products where these
    stand far above the rest and the solve takes more steps than ``rank``. A task whose approximation is not positive
    definite goes without (M = I).

    Args:
        rank: products with A, and columns of U (memory task · param · rank).
        seed: of the random directions, the same for every task and every solve.

    Cost: ``rank`` products for each solve, and 4 · param · rank multiplications for each M⁻¹ r. Source: Frangella,
    Tropp, Udell (2023), "Randomized Nyström preconditioning".
    """

    rank: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, "preconditioner", rank=self.rank)

    def inverse(self, product: Product, rhs: Tensor) -> Product:
        sketched = sketch(product, rhs, self.rank, self.seed)
        definite = sketched.definite()
        return lambda r: torch.where(definite, sketched.inverse_times(r), r)
