"""argmin: the minimiser of any G(φ, m), differentiable in m."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.adaptation.argmin.arguments import Arguments
from imaml_lightning.adaptation.argmin.layer import FunctionEquation, LinearSolve, copies_of
from imaml_lightning.adaptation.argmin.report import Report
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import LBFGS, InnerSolver
from imaml_lightning.linear import ConjugateGradient, LinearSolver
from imaml_lightning.problem.curvature import Curvature, Hessian, Operator
from imaml_lightning.problem.function import FunctionObjective, pull, slope
from imaml_lightning.problem.solution import Result, Solution, check_converged


def argmin(
    G: Callable[..., Tensor],
    start: Any,
    *meta: Any,
    inner_solver: InnerSolver | None = LBFGS(max_steps=500, rtol=1e-5),
    linear_solver: LinearSolver = ConjugateGradient(max_steps=500, rtol=1e-5),
    curvature: Curvature = Hessian(),
    batched: bool = False,
    atol: float | None = None,
    strict: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, Report]:
    """φ*(m) = argmin_φ G(φ, m), differentiable in m by the implicit function theorem, however it was found.

        A u = v,  A = ∇²_φφ G(φ*),  v = ∂L/∂φ*;     dL/dm = ∂L/∂m − (∂/∂m ∇_φ G)ᵀ u

    m is every tensor of ``meta`` that needs a gradient, and every leaf (a module's parameter, say) that G uses without being
    given it. Backward and forward mode, and derivatives of derivatives, one linear solve for each product.

    Args:
        G: ``G(φ, *meta)``, one number; twice differentiable (three times for second derivatives) by torch in all of these.
            It must give the same for the same arguments: no dropout, no running statistics.
        start: φ where the solver begins: a tensor, or tensors in a dict. It is not differentiated.
        meta: what else G is given: tensors, also in dicts, lists and tuples, modules, anything.
        inner_solver: finds φ*; None takes ``start`` for φ*, found elsewhere. ``Newton`` builds ∇²G in full: for few parameters.
        linear_solver: solves A u = v. ``Dense`` and ``Exact`` build A: for few parameters; ``Minres`` for an indefinite A.
        curvature: what A is: ``Hessian``, or ``FiniteDifference`` with a damping of theirs.
        batched: there is a problem for each entry of the first axis of φ ``[task, ...]``, and G gives ``[task]``; a problem's
            number depends on its own φ alone. The problems are solved together, and each ends for itself.
        atol: a problem counts as solved where ‖∇_φ G‖ ≤ atol, besides where its solver's own tolerance is met. If not given
            0, and where ``start`` is φ* the square root of the rounding error.
        strict: raise where a problem, or a linear system later, has not converged. If not, the report says it.
        allow_unused: let tensors of meta that need a gradient stand idle; their gradient is 0.

    Returns:
        φ*, like ``start``, and its report. Its error is about A⁻¹∇_φ G, which ``report.inner.residual`` bounds; that of a
        gradient has this and the linear residual, ``report.linear.residual`` after backward.

    Raises:
        UsageError: G does not return one number, or one for each problem; does not depend on φ, or on a tensor of meta that
            needs a gradient; couples the problems of a batch; ``start`` is not of real numbers; with ``strict``, no convergence.

    Cost: the inner solve, one gradient evaluation with its graph, and for every gradient one Hessian product a step of the
    linear solver (of one backward pass each) and one backward pass more. Memory does not grow with the solver's steps.
    Source: Bengio (2000), "Gradient-based optimization of hyperparameters"; Blondel et al. (2022), "Efficient and modular
    implicit differentiation".
    """
    arguments, linear_solve = Arguments(G, start, meta, batched), LinearSolve(strict=strict)
    return _minimised(arguments, inner_solver, linear_solver, curvature, linear_solve, atol, allow_unused)


def _minimised(
    arguments: Arguments,
    inner_solver: InnerSolver | None,
    linear_solver: LinearSolver,
    curvature: Curvature,
    linear_solve: LinearSolve,
    atol: float | None,
    allow_unused: bool,
) -> tuple[Any, Report]:
    copies = copies_of(arguments.tensors)
    objective = FunctionObjective(lambda phi: arguments.numbers(phi, *copies), arguments.start)
    with torch.no_grad():
        solution = inner_solver.minimise(objective, arguments.start) if inner_solver else found(arguments.start)
    if not (torch.is_grad_enabled() or copies):
        gradient = objective.value_and_gradient(solution.value)[1]
        return finish(arguments, certified(solution, gradient, atol), None, linear_solve, allow_unused)
    at = objective.linearise(solution.value)
    check_uncoupled(at.value, at.phi)

    def gradient_of(phi: Tensor, *tensors: Tensor) -> Tensor:
        return slope(arguments.numbers(phi, *tensors), phi, create_graph=True)

    equation = FunctionEquation(gradient_of, at.map, copies, linear_solver, linear_solve, Operator(curvature, at))
    return finish(arguments, certified(solution, at.gradient, atol), equation, linear_solve, allow_unused)


def found(phi: Tensor) -> Solution:
    """φ as it was found elsewhere: solved to the square root of its type's rounding error, or not."""
    zero = torch.zeros_like(phi[:, 0])
    tolerance = zero + torch.finfo(phi.dtype).eps ** 0.5
    return Solution(phi, torch.full_like(zero, Result.STEP_LIMIT, dtype=torch.int64), zero.long(), zero, tolerance)


def certified(solution: Solution, residual: Tensor, atol: float | None) -> Solution:
    """The solution with its codes by ``residual [task, param]`` at it."""
    if atol is not None:
        solution = replace(solution, tolerance=solution.tolerance.clamp(min=atol))
    return solution.certified(residual.detach().norm(dim=1))


def check_uncoupled(values: Tensor, phi: Tensor) -> None:
    """Refuse problems ``[task, ...]`` of a batch of which the first depends on the φ ``[task, param]`` of another."""
    if len(phi) > 1:
        (slopes,) = pull(values[0], [phi], torch.ones_like(values[0]))
        if ((slopes[1:] != 0) & slopes[1:].isfinite()).any():
            raise UsageError(
                "the first problem of the batch depends on the φ of others: let each use its own entry alone"
            )


def finish(
    arguments: Arguments,
    solution: Solution,
    equation: FunctionEquation | None,
    linear_solve: LinearSolve,
    allow_unused: bool,
) -> tuple[Any, Report]:
    """The solution as the user has it, and the report."""
    if linear_solve.strict:
        check_converged("the inner problem", solution)
    phi = solution.value
    if equation:
        if equation.unused and not allow_unused:
            raise UsageError(
                f"{arguments.name(equation.unused[0])} needs a gradient, but the solution does not depend on it: "
                "use it in the function, detach it, or set allow_unused=True"
            )
        phi = equation.solution(phi, arguments.tensors)
    return arguments.layout.split(phi), Report(solution, linear_solve, arguments.layout, equation)
