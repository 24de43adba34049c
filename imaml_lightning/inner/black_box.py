"""Any minimiser at all: a method of SciPy by its name, or a function of the user's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imaml_lightning.errors import UsageError, check_at_least, check_fraction
from imaml_lightning.inner.base import InnerSolver
from imaml_lightning.inner.progress import Progress
from imaml_lightning.problem.base import Objective
from imaml_lightning.problem.curvature import Hessian
from imaml_lightning.problem.solution import Result, Solution

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
Minimiser = Callable[[ValueAndGradient, Tensor], Tensor]

_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_WITH_HESSIAN_PRODUCTS = {"newton-cg", "trust-ncg", "trust-krylov", "trust-constr"}
_WITH_HESSIAN = {"dogleg", "trust-exact"}


@dataclass(frozen=True)
class BlackBox(InnerSolver):
    """φ* by code that knows nothing of this package: nothing is differentiated through an inner solver.

    Tasks are solved one after another. SciPy computes in float64, the network in its own type. The verdict is ours,
    not the method's: a task has converged where ‖∇G(φ*)‖ ≤ rtol ‖∇G(start)‖, and a φ* that is not finite is refused
    for the start.

    Args:
        method: a method of ``scipy.optimize.minimize``, such as ``L-BFGS-B``; or a function
            ``(value_and_gradient, start [param]) -> φ [param]``, where ``value_and_gradient(φ)`` gives G ``[]`` and
            ∇G ``[param]``. In YAML, the function's import path.
        max_steps: SciPy's ``maxiter``; the function's own affair otherwise.
        rtol: the certificate's tolerance. A SciPy method that is given gradients ends at the first point that meets it. One
            that ends by itself before that and before max_steps (its tolerances are set tight; in float32 a line search
            often finds nothing lower) ends with STALLED.

    Cost: what the method takes (CG and L-BFGS-B about one gradient evaluation a step; dogleg and trust-exact one
    Hessian product for every parameter), two evaluations more, and the way to the CPU. ``steps`` are those that SciPy
    counts, and 1 for a function. Source: Virtanen et al. (2020), "SciPy 1.0".
    """

    method: Minimiser | str = "L-BFGS-B"
    max_steps: int = 100
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        check_at_least(1, "inner_solver", max_steps=self.max_steps)
        check_fraction("inner_solver", rtol=self.rtol)
        if isinstance(self.method, str):
            from scipy.optimize import show_options  # slow to import, and needed here only

            try:
                show_options("minimize", self.method, disp=False)
            except ValueError as error:
                raise UsageError(
                    f"scipy.optimize.minimize has no method {self.method!r}: set inner_solver.method"
                ) from error

    def minimise(self, objective: Objective, start: Tensor) -> Solution:
        progress = Progress(start, self.rtol)
        active = progress.see(start, objective.value_and_gradient(start)[1])
        phi = start.clone()
        ended = torch.zeros_like(active)
        assert progress.tolerance is not None
        for index in active.squeeze(1).nonzero().squeeze(1).tolist():
            task = objective.task(index)
            if isinstance(self.method, str):
                tolerance = float(progress.tolerance[index])
                phi[index], taken = self._scipy(self.method.lower(), task, start[index], tolerance)
                progress.steps[index], ended[index] = taken, taken < self.max_steps
            else:
                phi[index] = self.method(_of_one(task), start[index].clone())
        solution = progress.solution(phi, objective.value_and_gradient(phi)[1])
        stalled = ended.squeeze(1) & (solution.result == Result.STEP_LIMIT)
        return replace(solution, result=torch.where(stalled, Result.STALLED, solution.result))

    def _scipy(self, method: str, task: Objective, start: Tensor, tolerance: float) -> tuple[Tensor, int]:
        """φ* ``[param]`` of one task, the first point with ‖∇G‖ ≤ tolerance if there is one, and SciPy's steps up to it."""
        from scipy.optimize import minimize  # slow to import, and needed here only

        value_and_gradient = _of_one(task)
        steps = itertools.count()

        def tensor(x: Any) -> Tensor:
            return torch.from_numpy(x).to(start)

        def function(x: Any) -> tuple[float, Any]:
            value, gradient = value_and_gradient(tensor(x))
            if not derivative_free and gradient.norm() <= tolerance:
                raise _Met(x)
            return value.item(), gradient.double().cpu().numpy()

        def product(x: Any, p: Any) -> Any:
            at = task.linearise(tensor(x).unsqueeze(0))
            return Hessian().product(at, tensor(p).unsqueeze(0))[0].double().cpu().numpy()

        def hessian(x: Any) -> Any:
            at = task.linearise(tensor(x).unsqueeze(0))
            columns = [Hessian().product(at, e.unsqueeze(0)) for e in torch.eye(len(start)).to(start)]
            return torch.cat(columns).double().cpu().numpy()

        derivative_free = method in _WITHOUT_GRADIENT
        arguments: dict[str, Any] = (
            {"fun": lambda x: function(x)[0]} if derivative_free else {"fun": function, "jac": True}
        )
        if method in _WITH_HESSIAN_PRODUCTS:
            arguments["hessp"] = product
        elif method in _WITH_HESSIAN:
            arguments["hess"] = hessian
        options = {"maxfun" if method == "tnc" else "maxiter": self.max_steps}
        # Two of them take it for the relative fall of G, of which an eps is the least.
        tight = torch.finfo(torch.float64).eps if method in ("l-bfgs-b", "tnc") else 1e-12
        arguments |= {"tol": tight, "options": options, "callback": lambda *_: next(steps) and None}
        try:
            found = minimize(x0=start.double().cpu().numpy(), method=method, **arguments)
        except _Met as met:
            return tensor(met.x), next(steps) + 1
        return tensor(found.x), int(found.get("nit", found.nfev))


class _Met(Exception):
    """A point that meets the tolerance."""

    def __init__(self, x: Any) -> None:
        self.x = x.copy()


def _of_one(task: Objective) -> ValueAndGradient:
    """G and ∇G of a single task, of φ ``[param]``."""

    def value_and_gradient(phi: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = task.value_and_gradient(phi.unsqueeze(0))
        return value[0], gradient[0]

    return value_and_gradient
