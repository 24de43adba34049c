"""Diagnostics of a learner: the way that its inner solver takes, and how well each task's two solves went."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import InnerSolver
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.targets import settled
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.objective import InnerObjective, LinearisedObjective
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True, eq=False)
class TracedObjective(InnerObjective):
    """An inner objective that keeps every point at which a solver asks for a gradient."""

    points: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(objective: InnerObjective) -> TracedObjective:
        """The same objective, traced from now on."""
        return TracedObjective(**{each.name: getattr(objective, each.name) for each in fields(objective)})

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        self.points.append(phi.detach().clone())
        return super().value_and_gradient(phi)

    def linearise(self, phi: Tensor) -> LinearisedObjective:
        self.points.append(phi.detach().clone())
        return super().linearise(phi)


def trace(solver: InnerSolver, objective: InnerObjective) -> Tensor:
    """The points ``[point, task, param]`` at which ``solver`` asks for ∇G, θ first, and the one that it returns.

    With one gradient evaluation a step these are its iterates; a line search tries points that it does not take.
    """
    traced = TracedObjective.of(objective)
    with torch.no_grad():
        end = solver.minimise(traced, objective.start()).value
    return torch.stack([*traced.points, end])


@dataclass(frozen=True)
class Curve:
    """Figures of each task along its adaptation."""

    evaluations: list[int]  # [point], of the gradient, since θ
    figures: dict[str, Tensor]  # loss [point, task], and accuracy [point, task] for classes


def adaptation_curve(learner: MetaLearner, episode: Episode, max_steps: int | None = None, points: int = 12) -> Curve:
    """The query loss, and for classes the accuracy, along the way of the adaptation.

    Args:
        learner: whose adaptation goes that way.
        episode: tasks as the learner sees them.
        max_steps: of the inner solver, in place of its own, to look beyond.
        points: of the way at which the query set is judged, about; denser at its beginning.

    Raises:
        UsageError: max_steps is given, and the adaptation has no inner solver.
    """
    solver: InnerSolver | None = getattr(learner.adaptation, "inner_solver", None)
    if max_steps is not None:
        if solver is None:
            raise UsageError(f"{type(learner.adaptation).__name__} has no inner solver: leave out max_steps")
        solver = replace(solver, max_steps=max_steps)  # type: ignore[type-var]  # solvers are dataclasses
    with answering(learner), torch.no_grad():
        episode = settled(episode)
        objective = learner.objective(episode.support)
        if solver is not None:
            path = trace(solver, objective)
        else:
            traced = TracedObjective.of(objective)
            end = learner.adaptation(traced).phi
            path = torch.stack([*traced.points, end])
        last = len(path) - 1
        chosen = sorted({round(last * (number / (points - 1)) ** 2) for number in range(points)})
        figures = [learner.judge(path[number], episode.query) for number in chosen]
    return Curve(chosen, {name: torch.stack([figure[name] for figure in figures]) for name in figures[0]})


@dataclass(frozen=True)
class Solves:
    """How the two solves of each task went. ``linear`` is None where the adaptation solves no linear system."""

    inner: Solution
    stationarity: Tensor  # [task], ‖∇G‖ / ‖∇L_S‖
    linear: Solution | None


def solves(learner: MetaLearner, episode: Episode) -> Solves:
    """Adapt to ``episode`` and differentiate the query loss, as a meta-step does, and report on every task."""
    with torch.inference_mode(False), torch.enable_grad():
        episode = settled(episode)
        adapted = learner.adapted(episode.support)
        loss = learner.judge(adapted.phi, episode.query)["loss"].sum()
        if loss.requires_grad:  # the linear system is solved in the backward pass
            torch.autograd.grad(loss, [p for p in learner.parameters() if p.requires_grad], allow_unused=True)
        return Solves(adapted.inner, adapted.stationarity.detach(), adapted.linear)
