"""InnerObjective: G(φ) of a chunk of tasks, written down once, with its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from imaml_lightning.batching import per_task
from imaml_lightning.compiled import CompiledDerivatives
from imaml_lightning.draws import Draws
from imaml_lightning.episode import Examples
from imaml_lightning.linearisation import ByAutograd, ByCompiled, Linearisation, WrittenOut
from imaml_lightning.losses import task_losses
from imaml_lightning.parameters import FlatNetwork, Folded
from imaml_lightning.proximal import ProximalTerm


class InnerObjective:
    """G(φ, θ) = L_S(φ) + R(φ, θ) for each task of a chunk, as a function of φ ``[task, param]``.

    Args:
        network: the network as a function of a flat vector.
        support: x ``[task, example, *feature]`` and its targets.
        theta: meta-parameters ``[param]``.
        proximal: the regulariser R.
        criterion: ℓ(outputs, targets) of one task, a scalar such as the mean cross-entropy.
        derivatives: of this network and criterion, compiled.

    Derivatives come from autograd, several tasks at once by ``torch.func.vmap``; or from a network that evaluates many
    tasks at once by itself and has its derivatives written out (``FlatNetwork.fold``); or they are compiled.
    """

    def __init__(
        self,
        network: FlatNetwork,
        support: Examples,
        theta: Tensor,
        proximal: ProximalTerm,
        criterion: nn.Module,
        derivatives: CompiledDerivatives | None = None,
    ) -> None:
        self.network, self.support, self.theta = network, support, theta
        self.proximal, self.criterion = proximal, criterion
        self.compiled = derivatives if derivatives and derivatives.are_of(criterion, support) else None

    def task(self, index: int) -> InnerObjective:
        """G of one task alone."""
        support = Examples(*(part[index : index + 1] for part in self.support))
        return InnerObjective(self.network, support, self.theta, self.proximal, self.criterion, self.compiled)

    def on(self, examples: Examples, criterion: nn.Module | None = None) -> InnerObjective:
        """The same tasks with other examples, and with another criterion if given."""
        return InnerObjective(
            self.network, examples, self.theta, self.proximal, criterion or self.criterion, self.compiled
        )

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
            if self.compiled:
                loss, support = self.compiled.value_and_gradient(phi, *self.support)
            elif self._written_out:
                folded = self._fold(phi)
                loss, p = self._loss_at(folded.outputs.requires_grad_())
                support = self.network.join(folded.cotangent(p.detach()))
            else:
                loss = self.support_loss(phi.requires_grad_())
                (support,) = torch.autograd.grad(loss.sum(), phi)
        with torch.no_grad():
            penalty, proximal = self.proximal.value_and_gradient(phi.detach(), self.theta)
            return loss.detach() + penalty, support + proximal

    def gradient(self, phi: Tensor) -> Tensor:
        """∇_φ G ``[task, param]`` at ``phi``, differentiable in ``phi`` and in everything else on which G depends."""
        phi = phi if phi.requires_grad else phi.detach().requires_grad_()
        if self.compiled or self._written_out:
            support = _SupportGradient.apply(phi, self)
        else:
            loss = task_losses(self.criterion, self.outputs(phi), self.support)
            (support,) = torch.autograd.grad(loss.sum(), phi, create_graph=True)
        return support + self.proximal.product(phi - self.theta)

    def linearise(self, phi: Tensor) -> Linearisation:
        """G linearised at ``phi [task, param]``: one gradient evaluation."""
        draws = Draws(phi.device)

        def gradient_at(at: Tensor) -> Tensor:
            with draws.again():  # of the same function, where it is a random one
                return self.value_and_gradient(at)[1]

        of_regulariser = self.theta, self.proximal, gradient_at
        with torch.enable_grad():
            if self.compiled:
                return ByCompiled(phi, self.compiled, self.support, self._loss_at, *of_regulariser)
            if not self._written_out:
                return ByAutograd(phi, self.outputs, self._loss_at, *of_regulariser)
            return WrittenOut(phi, self.network, self._fold(phi.detach()), self._loss_at, *of_regulariser)

    def _loss_at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_S ``[task]`` and its gradient p in the outputs z, differentiable."""
        loss = task_losses(self.criterion, z, self.support)
        return loss, torch.autograd.grad(loss.sum(), z, create_graph=True)[0]

    @property
    def _written_out(self) -> bool:
        """Whether the network's own Jacobian products can stand in for autograd."""
        return self.network.can_fold and not any(True for _ in self.criterion.parameters())

    @cached_property
    def _fold(self) -> Callable[[Tensor], Folded]:
        return self.network.fold(self.support.x)


class _SupportGradient(torch.autograd.Function):
    """∇L_S as a function of φ, whose derivative is a Hessian product, differentiable once.

    Autograd keeps all its nodes until the last one is done, but a linearisation with its activations goes with its product,
    to be made anew if the caller comes again (``retain_graph=True``).
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, objective: InnerObjective) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.objective, ctx.at = objective, objective.linearise(phi)
        return ctx.at.support_gradient.detach()  # itself it would close a cycle with its node, which keeps ``at``

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        at, ctx.at = ctx.at or ctx.objective.linearise(*ctx.saved_tensors), None
        return at.support_hessian(u), None
