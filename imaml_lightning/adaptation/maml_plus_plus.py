"""MAML++: an unrolled adaptation whose outer loss begins with every step and whose derivatives begin first-order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from imaml_lightning.adaptation.base import Adapted
from imaml_lightning.adaptation.unrolled import Unrolled
from imaml_lightning.errors import check_at_least
from imaml_lightning.optimizers import SGD, DifferentiableOptimizer, Learned
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import ProximalTerm


class MAMLPlusPlus(Unrolled):
    """Outer loss Σ_k w_k L_Q(φ_k): all steps at first, w_k falling linearly to 0 for all but the last.

    At meta-step m of ``multi_step_until`` M: w_k = (1 − m/M)/T for k < T, and w_T takes the rest of 1. Its other parts
    are options elsewhere: learned rates per tensor and step (here the default), a cosine outer rate (``scheduler``),
    batch statistics (the networks' own).

    Args:
        optimizer: the rule of one step.
        steps: inner steps T in training.
        eval_steps: inner steps in validation and test; None is ``steps``.
        multi_step_until: meta-steps until the outer loss is that of the last step alone.
        first_order_until: meta-steps that are first-order.
        learned: hyper-parameters of the optimizer that are learned; None is lr for each tensor and step.
        proximal: the regulariser with its strength λ; None is none.

    Cost: while the weights fall, one query evaluation a step more than ``Unrolled``. Source: Antoniou, Edwards, Storkey (2019), section 4.
    """

    meta_steps: Tensor

    def __init__(
        self,
        optimizer: DifferentiableOptimizer = SGD(),
        steps: int = 5,
        eval_steps: int | None = None,
        multi_step_until: int = 1000,
        first_order_until: int = 0,
        learned: Sequence[Learned] | None = None,
        proximal: ProximalTerm | None = None,
    ) -> None:
        learned = [Learned("lr", "tensor", per_step=True)] if learned is None else learned
        super().__init__(optimizer, steps, eval_steps, learned=learned, proximal=proximal)
        check_at_least(0, "adaptation", multi_step_until=multi_step_until, first_order_until=first_order_until)
        self.multi_step_until, self.first_order_until = multi_step_until, first_order_until
        self.register_buffer("meta_steps", torch.zeros((), dtype=torch.int64))

    def outer_loss(self, adapted: Adapted, loss: Tensor, objective: InnerObjective, query: InnerObjective) -> Tensor:
        weight = max(0.0, 1 - int(self.meta_steps) / max(1, self.multi_step_until)) / self.steps
        if not weight:
            return loss
        before = [query.support_loss(phi) for phi in adapted.path[:-1]]
        return weight * sum(before) + (1 - weight * len(before)) * loss

    def exact_steps(self) -> int:
        return 0 if self.meta_steps < self.first_order_until else self.steps

    def after_outer_step(self, network: FlatNetwork, optimizer: Optimizer) -> None:
        super().after_outer_step(network, optimizer)
        self.meta_steps += 1

    def segments(self, exact_from: int, steps: int) -> list[range]:
        """One step each, so that φ is kept after every step while the outer loss needs it."""
        if self.meta_steps >= self.multi_step_until:
            return super().segments(exact_from, steps)
        return [range(number, number + 1) for number in range(steps)]
