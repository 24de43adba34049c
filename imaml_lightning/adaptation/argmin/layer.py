"""The implicit layer: a solution of F(φ, m) = 0 as a differentiable function of m."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imaml_lightning.errors import UsageError
from imaml_lightning.linear import LinearSolver
from imaml_lightning.linear.base import Product
from imaml_lightning.problem.function import LinearisedMap, leaves_of, pull
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.solution import Solution, check_converged


@dataclass
class LinearSolve:
    """What became of the linear solve; filled in by the pass that makes it."""

    solution: Solution | None = None
    strict: bool = False  # whether one that does not converge is an error


@dataclass(eq=False)
class Equation:
    """F(φ, m) = 0 at a solution φ ``[task, param]``, with A = ∂F/∂φ ``[task, param, param]``. By the implicit function theorem

        ∂φ/∂m = −A⁻¹ ∂F/∂m,     (∂φ/∂m)ᵀ v = −(∂F/∂m)ᵀ u  with  Aᵀ u = v

    It knows no φ of any graph, so it closes no cycle.

    Attributes:
        value: F ``[task, param]`` at φ, with its graph; 0 but for what the solver left.
        leaves: the tensors of that graph which stand for m.
        transposed: u ↦ Aᵀ u.
        solver: solves the linear system.
        report: where what became of it goes.
    """

    value: Tensor
    leaves: Sequence[Tensor]
    transposed: Product
    solver: LinearSolver
    report: LinearSolve

    def solve(self, product: Product, v: Tensor) -> Tensor:
        """u ``[task, param]`` with ``product(u)`` = v."""
        with torch.no_grad():
            solution = self.report.solution = self.solver.solve(product, v)
        if self.report.strict:
            check_converged("the linear system", solution)
        # A solver answers what is not a number by u = 0; the gradient must not look sound because of it.
        return torch.where(v.isfinite().all(1, keepdim=True), solution.value, torch.nan)

    def vjp(self, v: Tensor) -> tuple[Tensor | None, ...]:
        """(∂φ/∂m)ᵀ v for every m: one solve."""
        u = self.solve(self.transposed, v)
        # Naming the inputs keeps autograd from walking back to φ as well, which would cost one more Hessian product.
        # The graph is kept because the caller may come again (retain_graph=True); it goes when the layer's output goes.
        with full_precision(u.device):
            return torch.autograd.grad(self.value, self.leaves, -u, retain_graph=True, allow_unused=True)

    def jvp(self, tangents: Sequence[Tensor | None]) -> Tensor:
        """Σ (∂φ/∂m) ṁ ``[task, param]``: one solve."""
        raise UsageError("forward mode goes through argmin and root alone: use backward here")

    def vjp_again(self, ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        """``vjp`` where it is to be differentiated itself."""
        return _once(ctx, v)[2:]


class FunctionEquation(Equation):
    """The same of a function that can be evaluated again, and so differentiated in forward mode and as often as F itself.

    Args:
        function: φ ``[task, param]`` and tensors to F ``[task, param]``.
        at: F at the solution, evaluated on copies of the tensors.
        copies: leaves that stand for the tensors. All other leaves of F's graph are m as well: what F closes over.
        solver: solves the linear system.
        report: where what became of it goes.
        symmetric: u ↦ A u for a symmetric A, if it is to be another than that of F's graph.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        at: LinearisedMap,
        copies: Sequence[Tensor],
        solver: LinearSolver,
        report: LinearSolve,
        symmetric: Product | None = None,
    ) -> None:
        self.function, self.at = function, at
        found, known = leaves_of(at.value), {id(leaf) for leaf in (at.phi, *copies)}
        self.copies, self.closed_over = copies, [leaf for leaf in found if id(leaf) not in known]
        self.unused = [number for number, copy in enumerate(copies) if not any(copy is leaf for leaf in found)]
        if not any(leaf is at.phi for leaf in found):
            raise UsageError(
                "the equation does not depend on φ (G is linear in φ, or F does without it): it has no one solution"
            )
        self.product = symmetric or at.product
        super().__init__(at.value, [*copies, *self.closed_over], symmetric or at.transposed, solver, report)

    def solution(self, phi: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """φ ``[task, param]``, differentiable in the tensors and in what F closes over."""
        return ImplicitLayer.apply(phi, self, *tensors, *self.closed_over)

    def jvp(self, tangents: Sequence[Tensor | None]) -> Tensor:
        moving = [(leaf, t) for leaf, t in zip(self.leaves, tangents, strict=False) if t is not None]
        return self.solve(self.product, -self.at.push([leaf for leaf, _ in moving], [t for _, t in moving]))

    def vjp_again(self, ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        """u is itself the solution of an equation, (∂F/∂φ)ᵀ u − v = 0, in which φ and m move."""
        phi, *m = ctx.saved_tensors
        tensors = m[: len(self.copies)]

        def system(u: Tensor, phi: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
            return pull(self.function(phi, *tensors), [phi], u, create_graph=True)[0] - v

        inputs = phi, v, *tensors
        copies = copies_of(inputs)
        u = self.solve(self.transposed, v.detach())
        at = LinearisedMap(lambda u: system(u, *copies), u)
        u = FunctionEquation(system, at, copies, self.solver, self.report).solution(u, inputs)
        with _Gate() as gate:  # partial derivatives: φ hangs on m, and one m may hang on another
            held = [gate.hold(tensor) for tensor in (phi, *tensors)]
            return pull(self.function(*held), [*held[1:], *self.closed_over], -u, create_graph=True)


class ImplicitLayer(torch.autograd.Function):
    """φ* as a function of the tensors m on which F(φ*, m) = 0 depends."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, equation: Equation, *m: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.equation = equation
        solution = phi.clone()
        ctx.save_for_backward(solution, *m)
        return solution

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Tensor | None, ...]:
        if v is None:  # nothing came through a gate
            return (None,) * len(ctx.needs_input_grad)
        again = torch.is_grad_enabled()
        return None, None, *(ctx.equation.vjp_again(ctx, v) if again else ctx.equation.vjp(v))

    @staticmethod
    def jvp(ctx: Any, phi: None, equation: None, *tangents: Tensor | None) -> Tensor:
        return ctx.equation.jvp(tangents)


class _Gate:
    """Holds tensors: within it derivatives end at them, after it they go on to what the tensors were computed from."""

    def __enter__(self) -> _Gate:
        self.open = False
        return self

    def __exit__(self, *_: object) -> None:
        self.open = True

    def hold(self, tensor: Tensor) -> Tensor:
        """The same numbers."""
        return _Held.apply(tensor, self) if tensor.requires_grad else tensor.detach().requires_grad_()


class _Held(torch.autograd.Function):
    """A tensor with a gate before it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:
        return g if ctx.gate.open else None, None


@once_differentiable
def _once(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, *ctx.equation.vjp(v)


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaves with the same numbers."""
    return [tensor.detach().requires_grad_() for tensor in tensors]
