"""Adaptation: the map θ ↦ φ of a task, differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imaml_lightning.adaptation.argmin.layer import LinearSolve
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective, LinearisedObjective
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.solution import Result, Solution


class Adapted:
    """What adaptation gives for a chunk of tasks.

    Args:
        phi: φ ``[task, param]``, differentiable.
        solution: of the inner problem, as its solver knew it.
        objective: the inner problem.
        path: φ on the way, where the outer loss asks for it; φ itself is the last.
        at: the inner problem linearised at φ; None makes it when it is first asked for: one gradient evaluation.
        linear_solve: where the backward pass puts its report.
    """

    def __init__(
        self,
        phi: Tensor,
        solution: Solution,
        objective: InnerObjective,
        path: Sequence[Tensor] = (),
        at: LinearisedObjective | None = None,
        linear_solve: LinearSolve | None = None,
    ) -> None:
        self.phi, self.path = phi, path
        self._solution, self._objective, self._at, self._linear_solve = solution, objective, at, linear_solve

    @staticmethod
    def unsolved(phi: Tensor, steps: int, objective: InnerObjective, path: Sequence[Tensor] = ()) -> Adapted:
        """φ after so many steps that do not mean to solve the inner problem."""
        taken = torch.full_like(phi[:, 0], steps, dtype=torch.int64)
        unsolved, unknown = torch.full_like(taken, Result.STEP_LIMIT), torch.full_like(phi[:, 0].detach(), torch.nan)
        solution = Solution(phi.detach(), unsolved, taken, unknown, torch.zeros_like(unknown))
        return Adapted(phi, solution, objective, path)

    @property
    def linear(self) -> Solution | None:
        """The linear solve; None until the backward pass has made it, and where there is none to make."""
        return self._linear_solve.solution if self._linear_solve else None

    @cached_property
    def inner(self) -> Solution:
        """The inner solve, certified by ‖∇_φ G‖ at φ."""
        return self._solution.certified(self.linearised.gradient.detach().norm(dim=1))

    @cached_property
    def stationarity(self) -> Tensor:
        """‖∇_φ G‖ / ‖∇L_S‖ at φ ``[task]``."""
        return self.linearised.stationarity()

    @cached_property
    def linearised(self) -> LinearisedObjective:
        """The inner problem linearised at φ, by which both solves are certified."""
        return self._at or self._objective.linearise(self._solution.value)


class Adaptation(nn.Module, ABC):
    """A member of the MAML family: how φ depends on θ, how that dependence is differentiated, and the outer loss.

    Args:
        proximal: the regulariser of the inner objective, such as λ/2 ‖φ − θ‖²; None is that of the member's source.

    Attributes:
        usual_proximal: the regulariser of the source: λ = 2 where the inner problem is to be solved, none where steps are
            unrolled.
        regroups: it evaluates examples in other batches than their sets, so that the network has to stay whole.
        constant: every meta-step does the same work on other numbers, so that it can be recorded.
    """

    usual_proximal: type[ProximalTerm] = ProximalTerm
    regroups = False
    constant = False

    def __init__(self, proximal: ProximalTerm | None = None) -> None:
        super().__init__()
        self.proximal = proximal or self.usual_proximal()

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
