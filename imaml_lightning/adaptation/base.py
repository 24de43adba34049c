"""Adaptation: the map θ ↦ φ of a task, differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from imaml_lightning.inner import InnerSolver
from imaml_lightning.objective import InnerObjective
from imaml_lightning.proximal import ProximalTerm
from imaml_lightning.solution import Solution


@dataclass
class Adapted:
    """What adaptation gives for a chunk of tasks.

    ``linear`` is None until the backward pass has solved the linear system, and where there is none to solve.
    """

    phi: Tensor  # [task, param], differentiable
    inner: Solution
    stationarity: Tensor  # [task], ‖∇_φ G‖ / ‖∇L_S‖ at φ
    linear: Solution | None = None


class Adaptation(nn.Module, ABC):
    """A member of the MAML family: how φ depends on θ, and how that dependence is differentiated.

    Args:
        inner_solver: minimises the inner objective.
        proximal: the regulariser λ/2 ‖φ − θ‖² of the inner objective.
    """

    def __init__(self, inner_solver: InnerSolver, proximal: ProximalTerm) -> None:
        super().__init__()
        self.inner_solver = inner_solver
        self.proximal = proximal

    @abstractmethod
    def forward(self, objective: InnerObjective) -> Adapted:
        """Adapt to each task of ``objective``, from its θ. Differentiable if gradients are enabled."""
