"""InnerObjective: G(φ) of a chunk of tasks, written down once, with its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.base import Linearised, Objective
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.derivatives import ByAutograd, Compiled, Derivatives, Linearisation, WrittenOut
from imaml_lightning.problem.linear_head import LinearHead, LinearisedHead
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.randomness import Generators


@dataclass(frozen=True, eq=False)
class InnerObjective(Objective):
    """G(φ, θ) = L_S(φ) + R(φ, θ) for each task of a chunk, as a function of φ ``[task, param]``.

    Attributes:
        network: what is adapted, as a function of a flat vector.
        support: x ``[task, example, *feature]`` and its targets. Where the network is cut, x are the features that the
            shared part has made of the inputs: one more tensor on which G depends.
        theta: meta-parameters ``[param]``.
        proximal: the regulariser R.
        criterion: ℓ(outputs, targets) of one task, a scalar such as the mean cross-entropy.
        compiled: compiled derivatives of this network and criterion; None evaluates them as they are.
    """

    network: FlatNetwork
    support: Examples
    theta: Tensor
    proximal: ProximalTerm
    criterion: nn.Module
    compiled: CompiledDerivatives | None = None

    @property
    def derivatives(self) -> Derivatives:
        """How L_S is evaluated and differentiated. Autocast begins and ends while an objective lives, and changes what can be
        written out: one way is chosen under it, one without.
        """
        return self._under_autocast if torch.is_autocast_enabled(self.theta.device.type) else self._as_it_is

    def _choose(self) -> Derivatives:
        """The first of these ways that computes exactly this network."""
        here = self.network, self.support, self.criterion
        if self.compiled and self.compiled.are_of(self.network, self.criterion, self.support):
            return Compiled(*here, self.compiled)
        if self.network.is_linear:
            return LinearHead(*here)
        if self.network.can_fold and not any(True for _ in self.criterion.parameters()):
            return WrittenOut(*here)
        return ByAutograd(*here)

    _as_it_is, _under_autocast = cached_property(_choose), cached_property(_choose)

    def task(self, index: int) -> InnerObjective:
        """G of one task alone."""
        return self.on(Examples(*(part[index : index + 1] for part in self.support)))

    def on(self, examples: Examples, criterion: nn.Module | None = None) -> InnerObjective:
        """The same tasks with other examples, and with another criterion if given."""
        return replace(self, support=examples, criterion=criterion or self.criterion)

    def start(self) -> Tensor:
        """θ for every task, ``[task, param]``: where inner solvers begin."""
        return self.theta.detach().expand(self.support.x.shape[0], -1)

    def dependencies(self) -> list[Tensor]:
        """Every tensor m, other than φ, in which G is to be differentiated."""
        modules = [*self.network.shared(), *self.proximal.parameters(), *self.criterion.parameters()]
        return [m for m in (self.theta, self.support.x, *modules) if m.requires_grad]

    def support_loss(self, phi: Tensor) -> Tensor:
        """L_S ``[task]``, differentiable once."""
        return self.derivatives.value(phi)

    def value(self, phi: Tensor) -> Tensor:
        """G ``[task]``."""
        return self.support_loss(phi) + self.proximal(phi, self.theta)

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """G ``[task]`` and ∇_φ G ``[task, param]``, without a graph: one gradient evaluation."""
        loss, support = self.derivatives.value_and_gradient(phi)
        with torch.no_grad():
            penalty, proximal = self.proximal.value_and_gradient(phi.detach(), self.theta)
            return loss + penalty, support + proximal

    def gradient(self, phi: Tensor) -> Tensor:
        """∇_φ G ``[task, param]`` at ``phi``, differentiable in ``phi`` and in everything else on which G depends."""
        phi = phi if phi.requires_grad else phi.detach().requires_grad_()
        return self.derivatives.gradient(phi) + self.proximal.product(phi - self.theta)

    def linearise(self, phi: Tensor) -> LinearisedObjective:
        """G linearised at ``phi [task, param]``, in full precision: one gradient evaluation."""
        generators = Generators(phi.device)
        with torch.enable_grad(), full_precision(phi.device):
            return LinearisedObjective(self, self.derivatives.linearise(phi), generators)


class LinearisedObjective(Linearised):
    """G at a point: ∇_φ G = ∇L_S + ∇R, with the products that curvature needs.

    Attributes:
        loss: L_S at the point.
        proximal_gradient: ∇R ``[task, param]``; differentiable in θ and λ.
        gradient: ∇_φ G ``[task, param]``; differentiable in every meta-parameter on which G depends.
    """

    def __init__(self, objective: InnerObjective, loss: Linearisation, generators: Generators) -> None:
        self._objective, self.loss, self.phi, self._generators = objective, loss, loss.phi, generators
        self.proximal_gradient = objective.proximal.product(loss.phi - objective.theta)
        self.gradient = loss.gradient + self.proximal_gradient

    @torch.no_grad()
    def value(self) -> Tensor:
        """G ``[task]``, without a graph."""
        return self.loss.loss.detach() + self._objective.proximal(self.phi.detach(), self._objective.theta)

    def hvp(self, u: Tensor) -> Tensor:
        """∇²_φφ G u ``[task, param]``."""
        return self.loss.hvp(u) + self.proximal_hvp(u)

    def proximal_hvp(self, u: Tensor) -> Tensor:
        """∇²R u ``[task, param]``."""
        return self._objective.proximal.product(u).detach()

    def gradient_at(self, phi: Tensor) -> Tensor:
        """∇_φ G ``[task, param]`` at another point, without a graph; the same function, also where the network draws."""
        with self._generators.again(), full_precision(phi.device):
            return self._objective.value_and_gradient(phi)[1]

    def inverse(self, damping: float = 0.0) -> Callable[[Tensor], Tensor]:
        """v ↦ (∇²_φφ G + damping I)⁻¹ v, exactly.

        Raises:
            UsageError: it is not known: what is adapted is more than a linear layer.
        """
        if not isinstance(self.loss, LinearisedHead):
            raise UsageError(
                "an exact inverse is known where a linear head alone is adapted: set --model.adapt to the head, or use "
                "LBFGS or HessianFree as inner solver and ConjugateGradient as linear solver"
            )
        return self.loss.inverse(self._objective.proximal.diagonal(self.phi.shape[1]).detach() + damping)

    def stationarity(self) -> Tensor:
        """‖∇_φ G‖ / ‖∇L_S‖ ``[task]``: 0 at a minimiser, 1 where the regulariser plays no part."""
        support = self.loss.gradient.detach().norm(dim=1)
        return self.gradient.detach().norm(dim=1) / support.clamp(min=torch.finfo(support.dtype).tiny)
