"""Reptile: move θ towards where stochastic descent on a task leads."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.adaptation.walk import Walk
from imaml_lightning.episode import Examples
from imaml_lightning.errors import check_at_least
from imaml_lightning.optimizers import Adam, DifferentiableOptimizer
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import NoProximalTerm, ProximalTerm


class Reptile(Adaptation):
    """Outer loss ½ ‖θ − φ̃‖², whose gradient is Reptile's step θ − φ̃; φ̃ is taken as a constant.

    φ̃ is θ after ``steps`` steps on small batches of all the task's examples, support and query (Reptile makes no
    difference between them in training): every n-th example, from each of the n beginnings in turn. φ, by which the task is
    judged, is θ after ``eval_steps`` steps on the whole support set. With torch.optim.SGD of rate ε outside, θ ← θ + ε (φ̃ − θ).

    Args:
        optimizer: the rule of one step; it starts afresh on each task.
        steps: inner steps in training.
        eval_steps: inner steps on the support set in validation, test and the training log; None is ``steps``.
        batch: examples of a small batch, about.
        proximal: the regulariser with its strength λ; None is none.

    Cost: steps + eval_steps gradient evaluations. Source: Nichol, Achiam, Schulman (2018), algorithm 1 and section 6.1.
    """

    regroups = True
    usual_proximal = NoProximalTerm

    def __init__(
        self,
        optimizer: DifferentiableOptimizer = Adam(beta1=0.0),
        steps: int = 5,
        eval_steps: int | None = None,
        batch: int = 10,
        proximal: ProximalTerm | None = None,
    ) -> None:
        super().__init__(proximal)
        eval_steps = steps if eval_steps is None else eval_steps
        check_at_least(1, "adaptation", steps=steps, eval_steps=eval_steps, batch=batch)
        self.optimizer, self.steps, self.eval_steps, self.batch = optimizer, steps, eval_steps, batch

    def forward(self, objective: InnerObjective) -> Adapted:
        walk, phi = Walk(self.optimizer), objective.start()
        with torch.no_grad():
            phi, _ = walk.take(objective, range(self.eval_steps), False, phi, walk.start(phi))
        return Adapted.unsolved(phi, self.eval_steps, objective)

    def outer_loss(self, adapted: Adapted, loss: Tensor, objective: InnerObjective, query: InnerObjective) -> Tensor:
        pairs = zip(objective.support, query.support, strict=True)
        examples = Examples(*(torch.cat(pair, 1) for pair in pairs))
        batches = -(-examples.x.shape[1] // self.batch)
        walk, phi = Walk(self.optimizer), objective.start()
        state = walk.start(phi)
        with torch.no_grad():
            for number in range(self.steps):
                each = Examples(*(part[:, number % batches :: batches] for part in examples))
                phi, state = walk.take(objective.on(each), range(number, number + 1), False, phi, state)
        return 0.5 * (objective.theta - phi).square().sum(1)
