"""The inner problem G(φ, θ) of a batch of tasks, how it is differentiated, and what a solver says of its solution.

Read in this order: base (what solvers see), network (parameters as one vector), proximal, objective, function (any G), derivatives, compiled, curvature, solution, rows.
"""

from imaml_lightning.problem.base import Linearised, Objective
from imaml_lightning.problem.batching import per_task
from imaml_lightning.problem.curvature import Curvature, FiniteDifference, GaussNewton, Hessian, ReleasedCode
from imaml_lightning.problem.derivatives import Linearisation
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import NoProximalTerm, ProximalTerm
from imaml_lightning.problem.solution import Result, Solution

__all__ = [
    "Curvature",
    "FiniteDifference",
    "FlatNetwork",
    "GaussNewton",
    "Hessian",
    "InnerObjective",
    "Linearisation",
    "Linearised",
    "NoProximalTerm",
    "Objective",
    "ProximalTerm",
    "ReleasedCode",
    "Result",
    "Solution",
    "per_task",
]
