"""FunctionObjective: any differentiable G(φ) as inner solvers see it, and LinearisedMap: any F(φ) at a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.base import Linearised, Objective
from imaml_lightning.problem.precision import full_precision

Function = Callable[[Tensor], Tensor]


class FunctionObjective(Objective):
    """G of a batch of problems, one row each.

    Args:
        function: φ ``[task, param]`` to G ``[task]``, differentiable twice.
        start: φ ``[task, param]`` at which the others stay while one task is solved alone (``task``).

    Raises:
        UsageError: when G is evaluated and does not depend on φ.
    """

    def __init__(self, function: Function, start: Tensor) -> None:
        self.function, self._start = function, start

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        phi = phi.detach().requires_grad_()
        with torch.enable_grad():
            value = self.function(phi)
            gradient = slope(value, phi)
        return value.detach(), gradient

    def linearise(self, phi: Tensor) -> LinearisedFunction:
        return LinearisedFunction(self, phi)

    def task(self, index: int) -> FunctionObjective:
        """G of one task alone; an evaluation costs as much as one of all."""
        before, own, after = self._start[:index], self._start[index : index + 1], self._start[index + 1 :]
        return FunctionObjective(lambda phi: self.function(torch.cat([before, phi, after]))[index : index + 1], own)


class LinearisedMap:
    """F(φ) = 0 at a point, A = ∂F/∂φ ``[task, param, param]`` by products with one kept graph: one evaluation of F.

    Attributes:
        phi: the point ``[task, param]``, a leaf.
        value: F ``[task, param]`` with its graph.
    """

    def __init__(self, function: Function, phi: Tensor) -> None:
        self.phi = phi.detach().requires_grad_()
        with torch.enable_grad(), full_precision(phi.device):
            self.value = function(self.phi)
        self._pulled: dict[int, tuple[Tensor, Tensor]] = {}

    def transposed(self, u: Tensor) -> Tensor:
        """Aᵀ u ``[task, param]``: one backward pass."""
        return pull(self.value, [self.phi], u)[0]

    def product(self, u: Tensor) -> Tensor:
        """A u ``[task, param]``: one backward pass through that of Aᵀ w, which is linear in w."""
        return self.push([self.phi], [u])

    def push(self, tensors: list[Tensor], tangents: list[Tensor]) -> Tensor:
        """Σ (∂F/∂m) ṁ ``[task, param]`` for tensors m on which F depends, and as many tangents ṁ of their shapes."""
        total = torch.zeros_like(self.phi)
        for m, tangent in zip(tensors, tangents, strict=True):
            if id(m) not in self._pulled:
                w = torch.zeros_like(self.value, requires_grad=True)
                with torch.enable_grad():
                    self._pulled[id(m)] = w, pull(self.value, [m], w, create_graph=True)[0]
            w, pulled = self._pulled[id(m)]
            if pulled.requires_grad:
                total = total + pull(pulled, [w], tangent)[0]
        return total


class LinearisedFunction(Linearised):
    """G at a point: ∇G with its graph, and products with ∇²G.

    Attributes:
        value: G ``[task]`` with its graph.
    """

    def __init__(self, objective: FunctionObjective, phi: Tensor) -> None:
        self._objective = objective

        def gradient(phi: Tensor) -> Tensor:
            self.value = objective.function(phi)
            return slope(self.value, phi, create_graph=True)

        self.map = LinearisedMap(gradient, phi)
        self.phi, self.gradient = self.map.phi, self.map.value

    def hvp(self, u: Tensor) -> Tensor:
        return self.map.transposed(u)

    def gradient_at(self, phi: Tensor) -> Tensor:
        with full_precision(phi.device):
            return self._objective.value_and_gradient(phi)[1]

    def inverse(self, damping: float = 0.0) -> Callable[[Tensor], Tensor]:
        """By ∇²G in full: a product for each parameter, task · param² numbers and task · param³ operations."""
        identity = torch.eye(self.phi.shape[1], dtype=self.phi.dtype, device=self.phi.device)
        hessian = torch.stack([self.hvp(column.expand_as(self.phi)) for column in identity], dim=2)
        factors, pivots, _ = torch.linalg.lu_factor_ex(hessian + damping * identity)
        return lambda v: torch.linalg.lu_solve(factors, pivots, v.unsqueeze(2)).squeeze(2)


def slope(value: Tensor, phi: Tensor, create_graph: bool = False) -> Tensor:
    """∂(Σ value)/∂φ, the shape of φ; refused where ``value`` does not depend on φ."""
    (gradient,) = (
        torch.autograd.grad(value.sum(), phi, create_graph=create_graph, allow_unused=True)
        if value.requires_grad
        else (None,)
    )
    if gradient is None:
        raise UsageError(
            "G does not depend on φ: compute it from its first argument, by torch alone and without detach"
        )
    return gradient


def pull(value: Tensor, tensors: list[Tensor], u: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    """(∂value/∂m)ᵀ u for each tensor m, through a graph that stays; 0 for those on which ``value`` does not depend."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, tensors))
    return torch.autograd.grad(
        value, tensors, u, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def leaves_of(value: Tensor) -> list[Tensor]:
    """The leaves of a graph: every tensor, computed from no other, in which ``value`` can be differentiated."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::AccumulateGrad":
                found.append(node.variable)
            waiting.extend(before for before, _ in node.next_functions)
    return found
