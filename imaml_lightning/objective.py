"""InnerObjective: G(φ) of a chunk of tasks, written down once; all derivatives come from it by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.parameters import FlatNetwork, Folded, per_task
from imaml_lightning.proximal import ProximalTerm


@dataclass(frozen=True)
class Linearisation:
    """∇_φ G at a point, in its parts, with what curvature products need.

    With z = f(φ) the network's outputs on the support set and ℓ the criterion:
    ∇_φ G = Jᵀ p + ∇R, where J = ∂z/∂φ and p = ∂ℓ/∂z.
    """

    phi: Tensor  # [task, param], a leaf
    support_loss: Tensor  # L_S [task]
    outputs: Tensor  # z [task, example, output]
    output_gradient: Tensor  # p, the shape of z, differentiable in z
    support_gradient: Tensor  # Jᵀ p [task, param]
    proximal_gradient: Tensor  # ∇R [task, param], differentiable in θ and λ
    jacobian: Callable[[Tensor], Tensor]  # u ↦ J u
    transpose: Callable[[Tensor], Tensor]  # g ↦ Jᵀ g
    support_hessian: Callable[[Tensor], Tensor]  # u ↦ ∇²L_S u
    proximal_hessian: Callable[[Tensor], Tensor]  # u ↦ ∇²R u
    gradient_at: Callable[[Tensor], Tensor]  # ∇_φ G at other points, without a graph

    @cached_property
    def gradient(self) -> Tensor:
        """∇_φ G ``[task, param]``: differentiable in every meta-parameter on which G depends."""
        with torch.enable_grad():
            return self.support_gradient + self.proximal_gradient

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

    def on(self, examples: Examples, criterion: nn.Module | None = None) -> InnerObjective:
        """The same tasks with other examples, and with another criterion if given."""
        return InnerObjective(self.network, examples, self.theta, self.proximal, criterion or self.criterion)

    def start(self) -> Tensor:
        """θ for every task, ``[task, param]``: where inner solvers begin."""
        return self.theta.detach().expand(self.support.x.shape[0], -1)

    def dependencies(self) -> list[Tensor]:
        """Every tensor m, other than φ, in which G is to be differentiated."""
        modules = [*self.network.shared(), *self.proximal.parameters(), *self.criterion.parameters()]
        return [m for m in (self.theta, *modules) if m.requires_grad]

    def outputs(self, phi: Tensor) -> Tensor:
        """z = f(φ) ``[task, example, output]`` on the support set, by vmap, the faster to be differentiated twice."""
        return per_task(self.network, phi, self.support.x)

    def support_loss(self, phi: Tensor) -> Tensor:
        """L_S ``[task]``, faster to be differentiated once."""
        return task_losses(self.criterion, self.network.tasks(phi, self.support.x), self.support)

    def value(self, phi: Tensor) -> Tensor:
        """G ``[task]``."""
        return self.support_loss(phi) + self.proximal(phi, self.theta)

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """G ``[task]`` and ∇_φ G ``[task, param]``, without a graph: one gradient evaluation."""
        phi = phi.detach()
        with torch.enable_grad():
            if self._written_out:
                folded = self.network.folded(phi, self.support.x)
                loss, p = self._loss_at(folded.outputs.requires_grad_())
                support = self.network.join(folded.cotangent(p.detach()))
            else:
                loss = self.support_loss(phi.requires_grad_())
                (support,) = torch.autograd.grad(loss.sum(), phi)
        with torch.no_grad():
            d = phi.detach() - self.theta
            pull = self.proximal.product(d)
            return loss.detach() + 0.5 * (d * pull).sum(1), support + pull

    def gradient(self, phi: Tensor) -> Tensor:
        """∇_φ G ``[task, param]`` at ``phi``, differentiable in ``phi`` and in everything else on which G depends."""
        phi = phi if phi.requires_grad else phi.detach().requires_grad_()
        loss = task_losses(self.criterion, self.outputs(phi), self.support)
        (support,) = torch.autograd.grad(loss.sum(), phi, create_graph=True)
        return support + self.proximal.product(phi - self.theta)

    def linearise(self, phi: Tensor) -> Linearisation:
        """G linearised at ``phi [task, param]``: one gradient evaluation.

        Products come by autograd from one graph, which is kept, or from the network that has them written out.
        """
        phi = phi.detach().requires_grad_()
        with torch.enable_grad():
            if self._written_out:
                folded = self.network.folded(phi.detach(), self.support.x)
                z = folded.outputs.requires_grad_()
                loss, p = self._loss_at(z)
                products = _WrittenOut(self.network, folded, z, p)
                support = self.network.join(folded.cotangent(p.detach(), keep=True))
            else:
                z = self.outputs(phi)
                loss, p = self._loss_at(z)
                (support,) = torch.autograd.grad(z, phi, p, create_graph=True)
                products = _ByAutograd(phi, z, p, support)
            proximal = self.proximal.product(phi - self.theta)
        return Linearisation(
            phi,
            loss.detach(),
            z,
            p,
            support,
            proximal,
            products.jacobian,
            products.transpose,
            products.support_hessian,
            lambda u: self.proximal.product(u).detach(),
            self._gradient_at,
        )

    def _gradient_at(self, phi: Tensor) -> Tensor:
        return self.value_and_gradient(phi)[1]

    def _loss_at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_S ``[task]`` and its gradient p in the outputs z, differentiable."""
        loss = task_losses(self.criterion, z, self.support)
        return loss, torch.autograd.grad(loss.sum(), z, create_graph=True)[0]

    @property
    def _written_out(self) -> bool:
        """Whether the network's own Jacobian products can stand in for autograd."""
        learned_loss = any(True for _ in self.criterion.parameters())
        autocast = torch.is_autocast_enabled(self.theta.device.type)
        return self.network.can_fold and not learned_loss and not autocast


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


class _ByAutograd:
    """Products from the graph of ∇L_S = Jᵀ p."""

    def __init__(self, phi: Tensor, z: Tensor, p: Tensor, support: Tensor) -> None:
        self.phi, self.z, self.p, self.support = phi, z, p, support

    def jacobian(self, u: Tensor) -> Tensor:
        # Jᵀp is linear in p, so its gradient in p along u is J u.
        return _pull_back(self.support, self.p, u)

    def transpose(self, g: Tensor) -> Tensor:
        return _pull_back(self.z, self.phi, g)

    def support_hessian(self, u: Tensor) -> Tensor:
        return _pull_back(self.support, self.phi, u)


class _WrittenOut:
    """Products from the network's own passes."""

    def __init__(self, network: FlatNetwork, folded: Folded, z: Tensor, p: Tensor) -> None:
        self.network, self.folded, self.z, self.p = network, folded, z, p

    def jacobian(self, u: Tensor) -> Tensor:
        return self.folded.tangent(self.network.split(u))

    def transpose(self, g: Tensor) -> Tensor:
        return self.network.join(self.folded.cotangent(g))

    def support_hessian(self, u: Tensor) -> Tensor:
        dp = _pull_back(self.p, self.z, self.jacobian(u))
        return self.network.join(self.folded.bend(dp))


def _pull_back(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, g, retain_graph=True)[0]
