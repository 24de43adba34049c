"""Curvature: the matrix A of the linear system A u = v, as products with one kept graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.problem.base import Linearised
from imaml_lightning.problem.objective import LinearisedObjective
from imaml_lightning.problem.precision import full_precision


@dataclass(frozen=True)
class Curvature(ABC):
    """A symmetric matrix for each task, A = C + damping·I, where C models ∇²_φφ G.

    Args:
        damping: added to the diagonal as it is, beside λ (it is no multiple of it). With damping the linear system is no
            longer that of the implicit gradient; 0 (the default) is faithful.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, "curvature", damping=self.damping)

    def product(self, at: Linearised, u: Tensor) -> Tensor:
        """A u ``[task, param]`` for ``u [task, param]``, at the linearised point, in full precision."""
        with full_precision(u.device):
            return torch.add(self._product(at, u), u, alpha=self.damping)

    def inverse(self, at: Linearised) -> Callable[[Tensor], Tensor]:
        """v ↦ A⁻¹ v, exactly.

        Raises:
            UsageError: it is not known.
        """
        raise UsageError(
            f"{type(self).__name__} has no exact inverse: use GaussNewton or Hessian, or ConjugateGradient"
        )

    @abstractmethod
    def _product(self, at: Linearised, u: Tensor) -> Tensor: ...

    def _of_a_network(self, at: Linearised) -> LinearisedObjective:
        """Refuse a G that is not the loss of a network's outputs."""
        if isinstance(at, LinearisedObjective):
            return at
        raise UsageError(f"{type(self).__name__} needs the outputs of a network, and G is any function: use Hessian")


@dataclass(frozen=True)
class Operator:
    """A at a point, as linear solvers take it: a product, and the exact inverse where the problem has one."""

    curvature: Curvature
    at: Linearised

    def __call__(self, u: Tensor) -> Tensor:
        """A u ``[task, param]``."""
        return self.curvature.product(self.at, u)

    def inverse(self) -> Callable[[Tensor], Tensor]:
        """v ↦ A⁻¹ v; a UsageError where it is not known."""
        return self.curvature.inverse(self.at)


class Hessian(Curvature):
    """C = ∇²_φφ G, the exact matrix of the implicit function theorem: one backward pass a product.

    May be indefinite away from a minimiser; with batch normalisation it often is, early in training. Source: Pearlmutter
    (1994), "Fast exact multiplication by the Hessian".
    """

    def _product(self, at: Linearised, u: Tensor) -> Tensor:
        return at.hvp(u)

    def inverse(self, at: Linearised) -> Callable[[Tensor], Tensor]:
        return at.inverse(self.damping)


class GaussNewton(Curvature):
    """C = Jᵀ ∇²ℓ J + ∇²R, with J = ∂z/∂φ: the Hessian without the network's own curvature.

    Positive definite for any convex criterion ℓ (cross-entropy, squared error), and equal to the Hessian where the
    network is linear or the fit is perfect. A product is two passes, J and then Jᵀ: less work than a Hessian product.
    Source: Schraudolph (2002), "Fast curvature matrix-vector products", section 3.
    """

    def _product(self, at: Linearised, u: Tensor) -> Tensor:
        at = self._of_a_network(at)
        # ∇²ℓ is symmetric, so a backward pass through p(z) applies it.
        (hju,) = torch.autograd.grad(at.loss.output_gradient, at.loss.outputs, at.loss.jvp(u), retain_graph=True)
        return at.loss.vjp(hju) + at.proximal_hvp(u)

    def inverse(self, at: Linearised) -> Callable[[Tensor], Tensor]:
        return self._of_a_network(at).inverse(self.damping)  # known for linear heads, where both matrices are the same


class FiniteDifference(Curvature):
    """C u = (∇G(φ + h u) − ∇G(φ − h u)) / 2h: the Hessian from gradients alone.

    For networks that cannot be differentiated twice, and where a gradient is much cheaper than a graph. Two gradient
    evaluations a product. h ‖u‖ = eps^⅓ (1 + ‖φ‖) for each row balances rounding with the third derivative; the
    product then has an error of about eps^⅔ relative to the scale of G's derivatives: 1e-10 in float64, 2e-5 in
    float32, so linear solvers cannot be asked for more. Wrong across the kinks of ReLU networks. Source: Nocedal and
    Wright, section 8.1 and equation 7.10.
    """

    def _product(self, at: Linearised, u: Tensor) -> Tensor:
        phi, length = at.phi.detach(), u.norm(dim=1, keepdim=True)
        h = torch.finfo(u.dtype).eps ** (1 / 3) * (1 + phi.norm(dim=1, keepdim=True)) / length
        h = torch.where(length > 0, h, 1)
        return (at.gradient_at(phi + h * u) - at.gradient_at(phi - h * u)) / (2 * h)


class ReleasedCode(Curvature):
    """C = λ (2 I + ∇²L_S / (λ + 10)): the system of the original authors' released code, for comparison only.

    It is not the paper's (λ I + ∇²L_S): that code solves (2 I + H/(λ + 10)) u' = v, where the paper has (I + H/λ) u' =
    v, and u' = λ u here. So even an exact solve gives about half the first-order gradient, bent a little by H. One
    Hessian product a product. Needs a single λ. Source: github.com/aravindr93/imaml_dev, ``Learner.matrix_evaluator``
    in ``implicit_maml/learner_model.py`` with its defaults.
    """

    def _product(self, at: Linearised, u: Tensor) -> Tensor:
        at = self._of_a_network(at)
        strength = at.proximal_hvp(torch.ones_like(u))
        if (strength != strength[:, :1]).any():
            raise UsageError("curvature ReleasedCode needs one λ for the network: set proximal.per to network")
        return strength * (2 * u + at.loss.hvp(u) / (strength + 10))
