"""The diagonal of A as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import check_at_least
from imaml_lightning.linear.base import Product
from imaml_lightning.linear.preconditioner import Preconditioner


@dataclass(frozen=True)
class DiagonalPreconditioner(Preconditioner):
    """M = diag(A), estimated by Hutchinson's probes z of random signs: diag(A) ≈ mean z ⊙ A z, ``[task, param]``.

    The error of an entry is the norm of the rest of its row over √probes, so it helps where A is dominated by its
    diagonal and of uneven scale (one λ for each tensor, say), and can harm elsewhere. Entries below a hundredth of the
    mean, and negative ones, are set to that.

    Args:
        probes: products with A.
        seed: of the signs, the same for every task and every solve.

    Cost: ``probes`` products for each solve. Source: Bekas, Kokiopoulou, Saad (2007), "An estimator for the diagonal of
    a matrix".
    """

    probes: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, "preconditioner", probes=self.probes)

    def inverse(self, product: Product, rhs: Tensor) -> Product:
        # Drawn on the CPU: the same on every device.
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(2, (self.probes, rhs.shape[1]), generator=generator).mul(2).sub(1).to(rhs)
        diagonal = sum(z * product(z.expand_as(rhs)) for z in signs) / self.probes
        mean = diagonal.abs().mean(1, keepdim=True)
        diagonal = torch.maximum(diagonal, 0.01 * mean)
        diagonal = torch.where((mean > 0) & mean.isfinite(), diagonal, 1)
        return lambda r: r / diagonal
