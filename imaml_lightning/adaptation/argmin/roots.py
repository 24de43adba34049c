"""root: a solution of any F(φ, m) = 0, differentiable in m."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.adaptation.argmin.arguments import Arguments
from imaml_lightning.adaptation.argmin.layer import FunctionEquation, LinearSolve, copies_of
from imaml_lightning.adaptation.argmin.minimisers import certified, check_uncoupled, finish, found
from imaml_lightning.adaptation.argmin.newton_krylov import NewtonKrylov
from imaml_lightning.adaptation.argmin.report import Report
from imaml_lightning.linear import GMRES, LinearSolver
from imaml_lightning.problem.function import LinearisedMap


def root(
    F: Callable[..., Any],
    start: Any,
    *meta: Any,
    solver: NewtonKrylov | None = NewtonKrylov(),
    linear_solver: LinearSolver = GMRES(max_steps=500, rtol=1e-5),
    batched: bool = False,
    atol: float | None = None,
    strict: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, Report]:
    """φ*(m) with F(φ*, m) = 0, differentiable in m by the implicit function theorem: an equilibrium, or a fixed point of f with
    F = φ − f(φ, m).

        Aᵀ u = v,  A = ∂F/∂φ(φ*),  v = ∂L/∂φ*;     dL/dm = ∂L/∂m − (∂F/∂m)ᵀ u

    A need not be symmetric. What is not said here is as in ``argmin``.

    Args:
        F: ``F(φ, *meta)``, like φ; differentiable (twice for second derivatives) by torch in all of these.
        start: φ where the solver begins: a tensor, or tensors in a dict. It is not differentiated.
        meta: what else F is given.
        solver: finds φ*; None takes ``start`` for φ*, found elsewhere, by fixed-point iterations say.
        linear_solver: solves Aᵀ u = v: ``GMRES``, or ``Dense`` for few numbers in φ.
        batched: there is a problem for each entry of the first axis of φ ``[task, ...]``, each depending on its own φ alone.
        atol: a problem counts as solved where ‖F‖ ≤ atol, besides where its solver's own tolerance is met.
        strict: raise where a problem, or a linear system later, has not converged. If not, the report says it.
        allow_unused: let tensors of meta that need a gradient stand idle; their gradient is 0.

    Returns:
        φ*, like ``start``, and its report, in which ``inner.residual`` is ‖F‖ ``[task]``.

    Raises:
        UsageError: F does not return what is like φ; and as in ``argmin``.

    Cost: the solve, one evaluation of F with its graph, and for every gradient one backward pass a step of the linear solver, and
    one more. Source: Bai, Kolter, Koltun (2019), "Deep equilibrium models", theorem 1; Blondel et al. (2022).
    """
    arguments, linear_solve = Arguments(F, start, meta, batched), LinearSolve(strict=strict)
    return _solved(arguments, solver, linear_solver, linear_solve, atol, allow_unused)


def _solved(
    arguments: Arguments,
    solver: NewtonKrylov | None,
    linear_solver: LinearSolver,
    linear_solve: LinearSolve,
    atol: float | None,
    allow_unused: bool,
) -> tuple[Any, Report]:
    copies = copies_of(arguments.tensors)

    def residual(phi: Tensor) -> Tensor:
        return arguments.rows(phi, *copies)

    with torch.no_grad():
        solution = solver.solve(residual, arguments.start) if solver else found(arguments.start)
    if not (torch.is_grad_enabled() or copies):
        with torch.no_grad():
            value = residual(solution.value)
        return finish(arguments, certified(solution, value, atol), None, linear_solve, allow_unused)
    at = LinearisedMap(residual, solution.value)
    check_uncoupled(at.value, at.phi)
    equation = FunctionEquation(arguments.rows, at, copies, linear_solver, linear_solve)
    return finish(arguments, certified(solution, at.value, atol), equation, linear_solve, allow_unused)
