"""Derivatives: how L_S(φ) of a chunk of tasks is evaluated and differentiated; chosen once for an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.problem.batching import per_task
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.network import FlatNetwork


class Linearisation(ABC):
    """L_S at ``phi``. With z = f(φ) the outputs, J = ∂z/∂φ and p = ∂L_S/∂z: ∇L_S = Jᵀ p, ∇²L_S u = its derivative along u.

    Attributes:
        phi: the point ``[task, param]``, a leaf.
        outputs: z ``[task, example, output]``.
        loss: L_S ``[task]``.
        output_gradient: p, the shape of z; differentiable in z.
        gradient: ∇L_S ``[task, param]``; differentiable in every meta-parameter on which it depends.
    """

    phi: Tensor
    outputs: Tensor
    loss: Tensor
    output_gradient: Tensor
    gradient: Tensor

    @abstractmethod
    def jvp(self, u: Tensor) -> Tensor:
        """J u ``[task, example, output]`` for ``u [task, param]``."""

    @abstractmethod
    def vjp(self, g: Tensor) -> Tensor:
        """Jᵀ g ``[task, param]`` for ``g [task, example, output]``."""

    @abstractmethod
    def hvp(self, u: Tensor) -> Tensor:
        """∇²L_S u ``[task, param]``."""


class Derivatives(ABC):
    """L_S of each task of a chunk as a function of φ ``[task, param]``, with its derivatives.

    Args:
        network: what is adapted, as a function of a flat vector.
        examples: x ``[task, example, *feature]`` and targets.
        criterion: ℓ(outputs, targets) of one task, a scalar such as the mean cross-entropy.
    """

    def __init__(self, network: FlatNetwork, examples: Examples, criterion: nn.Module) -> None:
        self.network, self.examples, self.criterion = network, examples, criterion

    def value(self, phi: Tensor) -> Tensor:
        """L_S ``[task]``, differentiable once."""
        return task_losses(self.criterion, self.network.tasks(phi, self.examples.x), self.examples)

    @abstractmethod
    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """L_S ``[task]`` and ∇L_S ``[task, param]``, without a graph: one gradient evaluation."""

    @abstractmethod
    def gradient(self, phi: Tensor) -> Tensor:
        """∇L_S ``[task, param]``, differentiable in ``phi`` and in everything else on which it depends."""

    @abstractmethod
    def linearise(self, phi: Tensor) -> Linearisation:
        """L_S at ``phi``, with products: one gradient evaluation."""

    def loss_at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_S ``[task]`` and p = ∂L_S/∂z at the outputs z ``[task, example, output]``, differentiable."""
        loss = task_losses(self.criterion, z, self.examples)
        return loss, torch.autograd.grad(loss.sum(), z, create_graph=True)[0]


class ByAutograd(Derivatives):
    """For any network: autograd, several tasks at once by ``torch.func.vmap``."""

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        phi = phi.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.value(phi)
            (gradient,) = torch.autograd.grad(loss.sum(), phi)
        return loss.detach(), gradient

    def gradient(self, phi: Tensor) -> Tensor:
        loss = task_losses(self.criterion, self.outputs(phi), self.examples)
        return torch.autograd.grad(loss.sum(), phi, create_graph=True)[0]

    def linearise(self, phi: Tensor) -> Linearisation:
        return _FromGraph(phi, self)

    def outputs(self, phi: Tensor) -> Tensor:
        """z ``[task, example, output]`` by vmap, which is faster than ``network.tasks`` for second derivatives."""
        return per_task(self.network, phi, self.examples.x)


class _FromGraph(Linearisation):
    """Products from the graph of ∇L_S, which is built once and kept."""

    def __init__(self, phi: Tensor, of: ByAutograd) -> None:
        self.phi = phi.detach().requires_grad_()
        self.outputs = of.outputs(self.phi)
        self.loss, self.output_gradient = of.loss_at(self.outputs)
        (self.gradient,) = torch.autograd.grad(self.outputs, self.phi, self.output_gradient, create_graph=True)

    def jvp(self, u: Tensor) -> Tensor:
        # Jᵀp is linear in p, so its gradient in p along u is J u.
        return pull_back(self.gradient, self.output_gradient, u)

    def vjp(self, g: Tensor) -> Tensor:
        return pull_back(self.outputs, self.phi, g)

    def hvp(self, u: Tensor) -> Tensor:
        return pull_back(self.gradient, self.phi, u)


class _WithoutGraph(Derivatives):
    """For networks without a graph: ∇L_S is differentiated by its Hessian product, and in φ alone."""

    def gradient(self, phi: Tensor) -> Tensor:
        return _Gradient.apply(phi, self)


class WrittenOut(_WithoutGraph):
    """For a network that evaluates many tasks at once and has its derivatives written out (``FlatNetwork.fold``)."""

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            folded = self.fold(phi.detach())
            loss, p = self.loss_at(folded.outputs.requires_grad_())
            return loss.detach(), self.network.join(folded.vjp(p.detach()))

    def linearise(self, phi: Tensor) -> Linearisation:
        return _FromFold(phi, self)

    @cached_property
    def fold(self) -> Any:
        """From φ to the network's own evaluation; what depends on the inputs alone is computed once."""
        return self.network.fold(self.examples.x)


class _FromFold(Linearisation):
    """Products from a network that has them written out."""

    def __init__(self, phi: Tensor, of: WrittenOut) -> None:
        self.phi, self.network = phi.detach(), of.network
        self.folded = of.fold(self.phi)
        self.outputs = self.folded.outputs.requires_grad_()
        self.loss, self.output_gradient = of.loss_at(self.outputs)
        self.gradient = self.network.join(self.folded.vjp(self.output_gradient.detach(), keep=True))

    def jvp(self, u: Tensor) -> Tensor:
        return self.folded.jvp(self.network.split(u))

    def vjp(self, g: Tensor) -> Tensor:
        return self.network.join(self.folded.vjp(g))

    def hvp(self, u: Tensor) -> Tensor:
        dp = pull_back(self.output_gradient, self.outputs, self.jvp(u))
        return self.network.join(self.folded.vjp_derivative(dp))


class Compiled(_WithoutGraph):
    """By functions of φ that ``torch.compile`` has made (``callbacks.Compiled``)."""

    def __init__(
        self, network: FlatNetwork, examples: Examples, criterion: nn.Module, functions: CompiledDerivatives
    ) -> None:
        super().__init__(network, examples, criterion)
        self.functions = functions

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        return self.functions.value_and_gradient(phi, *self.examples)

    def linearise(self, phi: Tensor) -> Linearisation:
        return _FromFunctions(phi, self)


class _FromFunctions(Linearisation):
    """Products from compiled functions of φ."""

    def __init__(self, phi: Tensor, of: Compiled) -> None:
        self.phi, self.functions, self.examples = phi.detach(), of.functions, of.examples
        self.outputs = self.functions.outputs(self.phi, self.examples.x).requires_grad_()
        self.loss, self.output_gradient = of.loss_at(self.outputs)
        self.gradient = self.vjp(self.output_gradient)

    def jvp(self, u: Tensor) -> Tensor:
        return self.functions.jvp(self.phi, self.examples.x, u)

    def vjp(self, g: Tensor) -> Tensor:
        return self.functions.vjp(self.phi, self.examples.x, g)

    def hvp(self, u: Tensor) -> Tensor:
        return self.functions.hvp(self.phi, *self.examples, u)


class _Gradient(torch.autograd.Function):
    """∇L_S as a function of φ, whose derivative is a Hessian product, differentiable once.

    Autograd keeps all its nodes until the last one is done, but a linearisation with its activations goes with its product,
    to be made anew if the caller comes again (``retain_graph=True``).
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, derivatives: Derivatives) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.linearise = derivatives.linearise
        with torch.enable_grad():
            ctx.at = ctx.linearise(phi)
        return ctx.at.gradient.detach()  # itself it would close a cycle with its node, which keeps ``at``

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            at, ctx.at = ctx.at or ctx.linearise(*ctx.saved_tensors), None
        return at.hvp(u), None


def pull_back(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """(∂y/∂x)ᵀ g, through a graph that stays."""
    return torch.autograd.grad(y, x, g, retain_graph=True)[0]
