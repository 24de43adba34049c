"""Report: what became of a solution and of its derivatives."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import torch
from torch import Tensor

from imaml_lightning.adaptation.argmin.arguments import Layout
from imaml_lightning.adaptation.argmin.layer import FunctionEquation, LinearSolve
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.solution import Result, Solution


class Report:
    """How good a solution is, and the gradients taken through it. It keeps no graph alive.

    Attributes:
        inner: the solve: result codes, steps, and the residual ‖∇_φ G‖ (``argmin``) or ‖F‖ (``root``), each ``[task]``, with one
            task where there is one problem.
    """

    def __init__(
        self, inner: Solution, linear_solve: LinearSolve, layout: Layout, equation: FunctionEquation | None
    ) -> None:
        self.inner, self._linear_solve, self._layout = inner, linear_solve, layout
        self._equation = weakref.ref(equation) if equation else lambda: None

    @property
    def linear(self) -> Solution | None:
        """The last linear solve, its residual ‖A u − v‖ / ‖v‖; None until a derivative has been taken."""
        return self._linear_solve.solution

    @property
    def converged(self) -> bool:
        """Whether every problem did, and every linear system of the last derivative."""
        solves = [self.inner, self.linear] if self.linear else [self.inner]
        return all(bool((solve.result == Result.CONVERGED).all()) for solve in solves)

    def jvp(self, *tangents: Tensor | None) -> Any:
        """J ṁ, like φ: how the solution moves when the tensors of meta move by ``tangents``. One solve.

        Args:
            tangents: one for each tensor of meta that needs a gradient, in their order and of their shapes; None is 0.

        Raises:
            UsageError: the solution has been dropped, and its graph with it; or the tangents are not of those shapes.
        """
        equation = self._alive()
        for tensor, tangent in zip(equation.copies, tangents, strict=False):
            if tangent is not None and tangent.shape != tensor.shape:
                raise UsageError(f"a tangent is of shape {tuple(tangent.shape)}, its tensor of {tuple(tensor.shape)}")
        if len(tangents) != len(equation.copies):
            raise UsageError(
                f"jvp needs {len(equation.copies)} tangents, one for each tensor of meta; got {len(tangents)}"
            )
        return self._layout.split(equation.jvp(tangents))

    def jacobian(self, mode: Literal["forward", "reverse"] | None = None) -> tuple[Any, ...]:
        """∂φ/∂m for each tensor m of meta that needs a gradient: like φ, every tensor ``[*of φ, *of m]``.

        Args:
            mode: by one solve for each number in m, ``forward``, or for each in φ, ``reverse``; what is fewer if not given.

        Raises:
            UsageError: the solution has been dropped, and its graph with it.
        """
        equation = self._alive()
        columns = sum(m.numel() for m in equation.copies)
        forward = mode == "forward" if mode else columns <= equation.value.numel()
        rows = _by_columns(equation) if forward else _by_rows(equation)
        return tuple(map(self._layout.split, rows))

    def __str__(self) -> str:
        lines = [_sentence("solve", self.inner), *([_sentence("linear solve", self.linear)] if self.linear else [])]
        return "\n".join(lines)

    def _alive(self) -> FunctionEquation:
        if (equation := self._equation()) is None:
            raise UsageError(
                "there is no graph to differentiate: ask while φ is alive, and have it made with gradients on"
            )
        return equation


def _by_columns(equation: FunctionEquation) -> list[Tensor]:
    """∂φ/∂m ``[task, param, *m]`` for each m."""
    found = []
    for number, m in enumerate(equation.copies):
        tangents: list[Tensor | None] = [None] * len(equation.copies)
        columns = []
        for column in torch.eye(m.numel(), dtype=m.dtype, device=m.device):
            tangents[number] = column.reshape(m.shape)
            columns.append(equation.jvp(tangents))
        found.append(torch.stack(columns, -1).reshape(*equation.value.shape, *m.shape))
    return found


def _by_rows(equation: FunctionEquation) -> list[Tensor]:
    shape, count = equation.value.shape, equation.value.numel()
    rows = torch.eye(count, dtype=equation.value.dtype, device=equation.value.device)
    gradients = [
        [
            torch.zeros_like(m) if g is None else g
            for g, m in zip(equation.vjp(row.reshape(shape)), equation.copies, strict=False)
        ]
        for row in rows
    ]  # one for each m; what follows in vjp's answer are not among them
    columns = zip(*gradients, strict=True)
    return [torch.stack(each).reshape(*shape, *m.shape) for each, m in zip(columns, equation.copies, strict=True)]


def _sentence(what: str, solution: Solution) -> str:
    """Counts by result code, and the worst figures."""
    counts = [f"{(solution.result == code).sum()} {code.name}" for code in Result if (solution.result == code).any()]
    worst, most = float(solution.residual.max()), int(solution.steps.max())
    return f"{what}: {', '.join(counts)}; at most {most} steps, residual {worst:.1e}"
