"""Linearisation: ∇_φ G at a point, in its parts, with the products that curvature needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.episode import Examples
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.network import FlatNetwork, Folded
from imaml_lightning.problem.proximal import ProximalTerm

#: z [task, example, output] ↦ L_S [task] and p = ∂L_S/∂z, both differentiable in z
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


class Linearisation(ABC):
    """G at ``phi``. With z = f(φ) the network's outputs on the support set: ∇_φ G = Jᵀ p + ∇R, J = ∂z/∂φ, p = ∂L_S/∂z.

    Attributes:
        phi: the point ``[task, param]``, a leaf.
        outputs: z ``[task, example, output]``.
        support_loss: L_S ``[task]``.
        output_gradient: p, the shape of z; differentiable in z.
        support_gradient: Jᵀ p ``[task, param]``.
        proximal_gradient: ∇R ``[task, param]``; differentiable in θ and λ.
        gradient_at: ∇_φ G at other points, without a graph.
    """

    outputs: Tensor
    support_loss: Tensor
    output_gradient: Tensor
    support_gradient: Tensor

    def __init__(
        self, phi: Tensor, theta: Tensor, proximal: ProximalTerm, gradient_at: Callable[[Tensor], Tensor]
    ) -> None:
        self.phi, self.proximal, self.gradient_at = phi, proximal, gradient_at
        self.proximal_gradient = proximal.product(phi - theta)

    @abstractmethod
    def jacobian(self, u: Tensor) -> Tensor:
        """J u ``[task, example, output]`` for ``u [task, param]``."""

    @abstractmethod
    def transpose(self, g: Tensor) -> Tensor:
        """Jᵀ g ``[task, param]`` for ``g [task, example, output]``."""

    @abstractmethod
    def support_hessian(self, u: Tensor) -> Tensor:
        """∇²L_S u ``[task, param]``."""

    def proximal_hessian(self, u: Tensor) -> Tensor:
        """∇²R u ``[task, param]``."""
        return self.proximal.product(u).detach()

    @cached_property
    def gradient(self) -> Tensor:
        """∇_φ G ``[task, param]``: differentiable in every meta-parameter on which G depends."""
        with torch.enable_grad():
            return self.support_gradient + self.proximal_gradient

    def stationarity(self) -> Tensor:
        """‖∇_φ G‖ / ‖∇L_S‖ ``[task]``: 0 at a minimiser, 1 where the regulariser plays no part."""
        support = self.support_gradient.detach().norm(dim=1)
        return self.gradient.detach().norm(dim=1) / support.clamp(min=torch.finfo(support.dtype).tiny)


class ByAutograd(Linearisation):
    """Products from the graph of ∇L_S, which is built once and kept."""

    def __init__(self, phi: Tensor, outputs: Callable[[Tensor], Tensor], loss: Loss, *of_regulariser: Any) -> None:
        phi = phi.detach().requires_grad_()
        super().__init__(phi, *of_regulariser)
        self.outputs = outputs(phi)
        self.support_loss, self.output_gradient = loss(self.outputs)
        (self.support_gradient,) = torch.autograd.grad(self.outputs, phi, self.output_gradient, create_graph=True)

    def jacobian(self, u: Tensor) -> Tensor:
        # Jᵀp is linear in p, so its gradient in p along u is J u.
        return pull_back(self.support_gradient, self.output_gradient, u)

    def transpose(self, g: Tensor) -> Tensor:
        return pull_back(self.outputs, self.phi, g)

    def support_hessian(self, u: Tensor) -> Tensor:
        return pull_back(self.support_gradient, self.phi, u)


class WrittenOut(Linearisation):
    """Products from a network that has them written out; no graph of the network."""

    def __init__(self, phi: Tensor, network: FlatNetwork, folded: Folded, loss: Loss, *of_regulariser: Any) -> None:
        super().__init__(phi.detach(), *of_regulariser)
        self.network, self.folded = network, folded
        self.outputs = folded.outputs.requires_grad_()
        self.support_loss, self.output_gradient = loss(self.outputs)
        self.support_gradient = network.join(folded.cotangent(self.output_gradient.detach(), keep=True))

    def jacobian(self, u: Tensor) -> Tensor:
        return self.folded.tangent(self.network.split(u))

    def transpose(self, g: Tensor) -> Tensor:
        return self.network.join(self.folded.cotangent(g))

    def support_hessian(self, u: Tensor) -> Tensor:
        dp = pull_back(self.output_gradient, self.outputs, self.jacobian(u))
        return self.network.join(self.folded.bend(dp))


class ByCompiled(Linearisation):
    """Products from compiled functions of φ; no graph of the network."""

    def __init__(
        self, phi: Tensor, derivatives: CompiledDerivatives, support: Examples, loss: Loss, *of_regulariser: Any
    ) -> None:
        super().__init__(phi.detach(), *of_regulariser)
        self.derivatives, self.x, self.y = derivatives, *support
        self.outputs = derivatives.outputs(self.phi, self.x).requires_grad_()
        self.support_loss, self.output_gradient = loss(self.outputs)
        self.support_gradient = self.transpose(self.output_gradient)

    def jacobian(self, u: Tensor) -> Tensor:
        return self.derivatives.jacobian(self.phi, self.x, u)

    def transpose(self, g: Tensor) -> Tensor:
        return self.derivatives.transpose(self.phi, self.x, g)

    def support_hessian(self, u: Tensor) -> Tensor:
        return self.derivatives.hessian(self.phi, self.x, self.y, u)


def pull_back(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """(∂y/∂x)ᵀ g, through a graph that stays."""
    return torch.autograd.grad(y, x, g, retain_graph=True)[0]
