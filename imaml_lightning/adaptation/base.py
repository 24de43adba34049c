"""Adaptation: the map θ ↦ φ of a task, differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.optim import Optimizer

from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.solution import Solution


@dataclass
class Adapted:
    """What adaptation gives for a chunk of tasks.

    ``linear`` is None until the backward pass has solved the linear system, and where there is none to solve.
    """

    phi: Tensor  # [task, param], differentiable
    inner: Solution
    stationarity: Tensor  # [task], ‖∇_φ G‖ / ‖∇L_S‖ at φ
    linear: Solution | None = None
    path: Sequence[Tensor] = ()  # φ on the way, where the outer loss asks for it; φ itself is the last


class LazilyCertified(Adapted):
    """Adapted whose certificate costs a gradient evaluation at φ, which is made when the log first asks for it."""

    def __init__(self, phi: Tensor, solution: Solution, objective: InnerObjective, path: Sequence[Tensor] = ()) -> None:
        self.phi, self.linear, self.path = phi, None, path
        self._solution, self._objective = solution, objective

    @cached_property
    def _certificate(self) -> tuple[Solution, Tensor]:
        at = self._objective.linearise(self._solution.value)
        return self._solution.certified(at.gradient.detach().norm(dim=1)), at.stationarity()

    @property
    def inner(self) -> Solution:  # type: ignore[override]  # nobody assigns to it
        return self._certificate[0]

    @property
    def stationarity(self) -> Tensor:  # type: ignore[override]
        return self._certificate[1]


class Adaptation(nn.Module, ABC):
    """A member of the MAML family: how φ depends on θ, how that dependence is differentiated, and the outer loss.

    Args:
        proximal: the regulariser λ/2 ‖φ − θ‖² of the inner objective.
    """

    constant = False  # whether every meta-step does the same work on other numbers, so that it can be recorded

    def __init__(self, proximal: ProximalTerm) -> None:
        super().__init__()
        self.proximal = proximal

    @abstractmethod
    def forward(self, objective: InnerObjective) -> Adapted:
        """Adapt to each task of ``objective``, from its θ. Differentiable if gradients are enabled."""

    def outer_loss(self, adapted: Adapted, loss: Tensor, objective: InnerObjective, query: InnerObjective) -> Tensor:
        """What θ is trained on ``[task]``: the query ``loss [task]`` at φ, unless a member has another.

        ``objective`` is what was adapted to; ``query`` is the same with the query set in place of the support set.
        """
        return loss

    def fit_to(self, network: FlatNetwork) -> None:
        """Give every meta-parameter of the adaptation its size for this network. Called once."""
        self.proximal.fit_to(network)

    def after_outer_step(self, network: FlatNetwork, optimizer: Optimizer) -> None:
        """Called when the outer optimizer has stepped."""

    def figures(self) -> dict[str, Tensor]:
        """What the log tells of the meta-parameters of the adaptation."""
        return {"strength": self.proximal.strength().detach().mean()}
