"""InnerObjective: G(φ) of a chunk of tasks, written down once; all derivatives come from it by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.parameters import FlatNetwork
from imaml_lightning.proximal import ProximalTerm


@dataclass(frozen=True)
class Linearisation:
    """∇_φ G at a point, in its parts, with the graphs kept that Hessian products walk back through.

    With z = f(φ) the network's outputs on the support set and ℓ the criterion:
    ∇_φ G = Jᵀ p + ∇R, where J = ∂z/∂φ and p = ∂ℓ/∂z.
    """

    phi: Tensor  # [task, param], a leaf
    outputs: Tensor  # z [task, example, output]
    output_gradient: Tensor  # p, the shape of z
    support_gradient: Tensor  # Jᵀ p [task, param]
    proximal_gradient: Tensor  # ∇R [task, param]
    gradient: Tensor  # ∇_φ G [task, param], differentiable in φ and in everything else on which G depends
    gradient_at: Callable[[Tensor], Tensor]  # ∇_φ G at other points, without a graph

    def stationarity(self) -> Tensor:
        """‖∇_φ G‖ / ‖∇L_S‖ ``[task]``: 0 at a minimiser, 1 where the regulariser plays no part."""
        support = self.support_gradient.detach().norm(dim=1)
        return self.gradient.detach().norm(dim=1) / support.clamp(min=torch.finfo(support.dtype).tiny)


class InnerObjective:
    """G(φ, θ) = L_S(φ) + R(φ, θ) for each task of a chunk, as a function of φ ``[task, param]``.

    Args:
        network: the network as a function of a flat vector.
        support: x ``[task, example, *feature]`` and its targets.
        theta: meta-parameters ``[param]``.
        proximal: the regulariser R.
        criterion: ℓ(outputs, targets) of one task, a scalar such as the mean cross-entropy.

    One task is evaluated directly; several at once through ``torch.func.vmap``.
    """

    def __init__(
        self, network: FlatNetwork, support: Examples, theta: Tensor, proximal: ProximalTerm, criterion: nn.Module
    ) -> None:
        self.network, self.support, self.theta = network, support, theta
        self.proximal, self.criterion = proximal, criterion

    def task(self, index: int) -> InnerObjective:
        """G of one task alone."""
        support = Examples(*(part[index : index + 1] for part in self.support))
        return InnerObjective(self.network, support, self.theta, self.proximal, self.criterion)

    def start(self) -> Tensor:
        """θ for every task, ``[task, param]``: where inner solvers begin."""
        return self.theta.detach().expand(self.support.x.shape[0], -1)

    def dependencies(self) -> list[Tensor]:
        """Every tensor m, other than φ, in which G is to be differentiated."""
        modules = [*self.network.shared(), *self.proximal.parameters(), *self.criterion.parameters()]
        return [m for m in (self.theta, *modules) if m.requires_grad]

    def outputs(self, phi: Tensor) -> Tensor:
        """z = f(φ) ``[task, example, output]`` on the support set."""
        return per_task(self.network, phi, self.support.x)

    def support_loss(self, phi: Tensor) -> Tensor:
        """L_S ``[task]``."""
        return task_losses(self.criterion, self.outputs(phi), self.support)

    def value(self, phi: Tensor) -> Tensor:
        """G ``[task]``."""
        return self.support_loss(phi) + self.proximal(phi, self.theta)

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """G ``[task]`` and ∇_φ G ``[task, param]``, without a graph: one gradient evaluation."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            value = self.value(phi)
            (gradient,) = torch.autograd.grad(value.sum(), phi)
        return value.detach(), gradient

    def linearise(self, phi: Tensor) -> Linearisation:
        """∇_φ G at ``phi [task, param]`` with its graph: one gradient evaluation."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            z = self.outputs(phi)
            loss = task_losses(self.criterion, z, self.support).sum()
            (p,) = torch.autograd.grad(loss, z, create_graph=True)
            (support,) = torch.autograd.grad(z, phi, p, create_graph=True)
            (proximal,) = torch.autograd.grad(self.proximal(phi, self.theta).sum(), phi, create_graph=True)
            gradient = support + proximal
        return Linearisation(phi, z, p, support, proximal, gradient, lambda at: self.value_and_gradient(at)[1])


def task_losses(criterion: nn.Module, outputs: Tensor, examples: Examples) -> Tensor:
    """The criterion's mean over each task's real examples ``[task]``.

    Cross-entropy leaves out IGNORED targets by itself. In regression, padding is judged against its own output, which
    costs nothing and has no derivatives, and the mean is taken over the others; for losses that are means over entries.
    """
    if not examples.y.is_floating_point() or examples.real().all():
        return per_task(criterion, outputs, examples.y)

    def over_real(z: Tensor, y: Tensor) -> Tensor:
        real = ~y.isnan()
        return criterion(z, torch.where(real, y, z)) * (real.numel() / real.sum())

    return per_task(over_real, outputs, examples.y)


def per_task(function: Callable[[Tensor, Tensor], Tensor], *arguments: Tensor) -> Tensor:
    """``function`` of each task's row of the arguments; a single task needs no vmap."""
    if arguments[0].shape[0] == 1:
        return function(*(a[0] for a in arguments)).unsqueeze(0)
    return torch.func.vmap(function, randomness="different")(*arguments)
