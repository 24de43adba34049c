"""Unrolled adaptation: φ after some steps of a differentiable optimizer, differentiated through the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.adaptation.walk import Walk
from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.optimizers import SGD, DifferentiableOptimizer, Learned
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import NoProximalTerm, ProximalTerm


class Unrolled(Adaptation):
    """MAML: φ_0 = θ, φ_k = step(φ_{k−1}, ∇_φ G(φ_{k−1}, θ)), φ = φ_T, differentiated by walking back through the steps.

    The last ``backward_steps`` steps are differentiated exactly. Before them the gradient is taken as a constant: with
    0, dφ/dθ = I for gradient descent (first-order MAML). Hyper-parameters that are learned get their gradient from every step.

    Args:
        optimizer: the rule of one step.
        steps: inner steps T in training: gradient evaluations.
        eval_steps: inner steps in validation and test; None is ``steps``.
        backward_steps: None is all of them (MAML), 0 is first-order, k is truncated back-propagation.
        checkpoint: keep φ at every √T-th step only and compute the rest again on the way back: memory of 2√T steps in
            place of T, for one more gradient evaluation a step.
        learned: hyper-parameters of the optimizer that are learned.
        outer_moments: start the inner optimizer's moments from those of the outer one, which must be of the same kind.
        proximal: the regulariser with its strength λ; None is none.

    Raises:
        UsageError: for a value that cannot be used.

    Cost: about 2 gradient evaluations a step in training; memory grows with the steps that are differentiated. Source:
    Finn, Abbeel, Levine (2017); Grefenstette et al. (2019); Shaban et al. (2019) for the truncated form.
    """

    usual_proximal = NoProximalTerm
    outer_steps: Tensor

    def __init__(
        self,
        optimizer: DifferentiableOptimizer = SGD(),
        steps: int = 5,
        eval_steps: int | None = None,
        backward_steps: int | None = None,
        checkpoint: bool = False,
        learned: Sequence[Learned] = (),
        outer_moments: bool = False,
        proximal: ProximalTerm | None = None,
    ) -> None:
        super().__init__(proximal)
        check_at_least(1, "adaptation", steps=steps, eval_steps=steps if eval_steps is None else eval_steps)
        check_at_least(0, "adaptation", backward_steps=backward_steps or 0)
        self.optimizer, self.steps, self.eval_steps = optimizer, steps, eval_steps or steps
        self.backward_steps, self.checkpoint = backward_steps, checkpoint
        self.learned = nn.ModuleDict({each.name: each for each in learned})
        if len(self.learned) < len(learned):
            raise UsageError("a hyper-parameter is learned twice: name each in one entry of adaptation.learned")
        self.outer_moments = outer_moments
        if outer_moments and not optimizer.moments:
            raise UsageError(f"{type(optimizer).__name__} has no moments to start from: leave out outer_moments")

    def fit_to(self, network: FlatNetwork) -> None:
        super().fit_to(network)
        for each in self.learned.values():
            assert isinstance(each, Learned)
            each.fit_to(network, self.optimizer, self.steps)
        if self.outer_moments and network.any_way:
            raise UsageError("outer_moments need a head of a fixed number of classes: leave them out")
        if self.outer_moments:
            self.register_buffer("outer_steps", torch.zeros((), dtype=torch.int64))
            for name in self.optimizer.moments:
                self.register_buffer(f"outer_{name}", torch.zeros(sum(network.sizes)))

    def forward(self, objective: InnerObjective) -> Adapted:
        training = torch.is_grad_enabled()
        steps = self.steps if training else self.eval_steps
        exact_from = max(0, steps - self.exact_steps()) if training else steps
        walk, path = self.walk(), []
        phi = objective.theta.expand(objective.support.x.shape[0], -1)
        state = walk.start(phi)
        for numbers in self.segments(exact_from, steps):
            exact = numbers.start >= exact_from
            if self.checkpoint and exact:
                phi, state = walk.take_checkpointed(objective, numbers, phi, state)
            else:
                phi, state = walk.take(objective, numbers, exact, phi, state)
            path.append(phi)
        return Adapted.unsolved(phi, steps, objective, path)

    def walk(self) -> Walk:
        """The steps, with the hyper-parameters and from the moments as they are now."""
        if not self.outer_moments or not self.outer_steps:
            return Walk(self.optimizer, dict(self.learned.items()))
        moments = {name: self.get_buffer(f"outer_{name}") for name in self.optimizer.moments}
        return Walk(self.optimizer, dict(self.learned.items()), moments, int(self.outer_steps))

    def segments(self, exact_from: int, steps: int) -> list[range]:
        """The steps in consecutive parts; φ at the end of each is kept, and with ``checkpoint`` nothing between."""
        length = math.isqrt(max(1, steps - exact_from - 1)) + 1 if self.checkpoint else max(1, steps - exact_from)
        exact = [range(first, min(first + length, steps)) for first in range(exact_from, steps, length)]
        return ([range(exact_from)] if exact_from else []) + exact

    def exact_steps(self) -> int:
        """How many of the last steps are differentiated exactly."""
        return self.steps if self.backward_steps is None else self.backward_steps

    def figures(self) -> dict[str, Tensor]:
        return super().figures() | {f"learned_{name}": each(1).detach().mean() for name, each in self.learned.items()}

    def after_outer_step(self, network: FlatNetwork, optimizer: Optimizer) -> None:
        if not self.outer_moments:
            return
        memory = [optimizer.state[network.network.get_parameter(name)] for name in network.names]
        for name in self.optimizer.moments:
            if any(name not in each for each in memory):
                raise UsageError(
                    f"the outer {type(optimizer).__name__} has no {name} to start the inner "
                    f"{type(self.optimizer).__name__} from: use the same kind, or leave out adaptation.outer_moments"
                )
            self.get_buffer(f"outer_{name}").copy_(torch.cat([each[name].flatten() for each in memory]))
        self.outer_steps += 1
