"""Continued: ordinary training, whose hyper-parameters are learned on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from imaml_lightning.adaptation.base import Adapted
from imaml_lightning.adaptation.unrolled import Unrolled
from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers import SGD, DifferentiableOptimizer, Learned, State
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective


class Continued(Unrolled):
    """One long optimisation: each meta-step goes on from where the last one ended, θ ← φ.

    A meta-step takes ``steps`` steps on small batches (every ``steps``-th example of the support set, from each beginning in
    turn), then the query loss at φ gives the gradient of the learned hyper-parameters through these steps; θ gets none. In
    validation and test φ = θ. One task is trained at a time, the same one: see ``OneProblem``.

    Args:
        optimizer: the rule of one step; its ``moments`` are carried on as well.
        steps: steps, and small batches, of a meta-step.
        learned: hyper-parameters of the optimizer that are learned; none gives ordinary training.

    Raises:
        UsageError: for more than one task in a training step.

    Source: Grefenstette et al. (2019), section 4.1, the experiment of its figure 1.
    """

    regroups = True

    def __init__(
        self, optimizer: DifferentiableOptimizer = SGD(), steps: int = 5, learned: Sequence[Learned] = ()
    ) -> None:
        super().__init__(optimizer, steps, learned=learned, outer_moments=bool(optimizer.moments))
        self.end: tuple[Tensor, State] | None = None  # of the last meta-step, until its outer step is taken

    def forward(self, objective: InnerObjective) -> Adapted:
        tasks = len(objective.support.x)
        theta = objective.theta.detach()
        phi = theta.expand(tasks, -1)
        if not torch.is_grad_enabled():
            return self._adapted(phi, 0, objective, [])
        if tasks > 1:
            raise UsageError(f"Continued trains on one task at a time, got {tasks}: set --data.tasks 1")
        # Without anything to learn the steps need no graph.
        exact = any(p.requires_grad for p in self.parameters())
        state = self._start(phi)
        for number in range(self.steps):
            batch = Examples(*(part[:, number :: self.steps] for part in objective.support))
            here = replace(objective, support=batch, theta=theta)
            phi, state = self._walk(here, range(number, number + 1), exact, phi, state)
        self.end = phi.detach(), {name: value.detach() for name, value in state.items()}
        return self._adapted(phi, self.steps, objective, [])

    def outer_loss(self, adapted: Adapted, loss: Tensor, objective: InnerObjective, query: InnerObjective) -> Tensor:
        return loss + 0 * objective.theta.sum()  # a gradient of zero, also where nothing is learned

    @torch.no_grad()
    def after_outer_step(self, network: FlatNetwork, optimizer: Optimizer) -> None:
        assert self.end is not None
        phi, state = self.end
        for name, value in network.named(phi[0]).items():
            network.network.get_parameter(name).copy_(value)
        for name in self.optimizer.moments:
            if name in state:
                self.get_buffer(f"outer_{name}").copy_(state[name][0])
        if self.outer_moments:
            self.outer_steps += self.steps
