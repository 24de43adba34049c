"""Curvature: the matrix A of the linear system A u = v, as products with one kept graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.objective import Linearisation


@dataclass(frozen=True)
class Curvature(ABC):
    """A symmetric matrix for each task, A = C + damping·I, where C models ∇²_φφ G.

    Args:
        damping: added to the diagonal, in units of λ. With damping the linear system is no longer that of
            the implicit gradient; 0 (the default) is faithful.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise UsageError(f"damping must be at least 0, got {self.damping}: set curvature.damping to 0 or more")

    def product(self, at: Linearisation, u: Tensor) -> Tensor:
        """A u ``[task, param]`` for ``u [task, param]``, at the linearised point."""
        return torch.add(self._product(at, u), u, alpha=self.damping)

    @abstractmethod
    def _product(self, at: Linearisation, u: Tensor) -> Tensor: ...


class Hessian(Curvature):
    """C = ∇²_φφ G, the exact matrix of the implicit function theorem: one backward pass a product.

    May be indefinite away from a minimiser (always near one with batch normalisation and a small λ).
    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    def _product(self, at: Linearisation, u: Tensor) -> Tensor:
        return torch.autograd.grad(at.gradient, at.phi, u, retain_graph=True)[0]


class GaussNewton(Curvature):
    """C = Jᵀ ∇²ℓ J + ∇²R, with J = ∂z/∂φ: the Hessian without the network's own curvature.

    Positive definite for any convex criterion ℓ (cross-entropy, squared error), and equal to the Hessian where the
    network is linear or the fit is perfect. A product is two passes, through ∂(Jᵀp)/∂p and through z: in all less
    work than a Hessian product. Source: Schraudolph (2002), "Fast curvature matrix-vector products", section 3.
    """

    def _product(self, at: Linearisation, u: Tensor) -> Tensor:
        # Jᵀp is linear in p, so its gradient in p along u is J u; ∇²ℓ is symmetric, so a backward pass through p(z) applies it.
        (ju,) = torch.autograd.grad(at.support_gradient, at.output_gradient, u, retain_graph=True)
        (hju,) = torch.autograd.grad(at.output_gradient, at.outputs, ju, retain_graph=True)
        (support,) = torch.autograd.grad(at.outputs, at.phi, hju, retain_graph=True)
        (proximal,) = torch.autograd.grad(at.proximal_gradient, at.phi, u, retain_graph=True)
        return support + proximal
