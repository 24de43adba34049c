"""Unrolled adaptation: φ after some steps of a differentiable optimizer, differentiated through the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.optimizers import SGD, DifferentiableOptimizer, Learned, State
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import NoProximalTerm, ProximalTerm
from imaml_lightning.problem.randomness import Generators
from imaml_lightning.problem.solution import Result, Solution


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
        super().__init__(proximal or NoProximalTerm())
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
        phi = objective.theta.expand(objective.support.x.shape[0], -1)
        state, path = self._start(phi), []
        for numbers in self._segments(exact_from, steps):
            walk = partial(self._walk, objective, numbers, numbers.start >= exact_from)
            if self.checkpoint and numbers.start >= exact_from:
                phi, state = checkpointed(walk, phi, state, self._dependencies(objective))
            else:
                phi, state = walk(phi, state)
            path.append(phi)
        return self._adapted(phi, steps, objective, path)

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

    def _adapted(self, phi: Tensor, steps: int, objective: InnerObjective, path: Sequence[Tensor]) -> Adapted:
        taken = torch.full_like(phi[:, 0], steps, dtype=torch.int64)
        unsolved, unknown = torch.full_like(taken, Result.STEP_LIMIT), torch.full_like(phi[:, 0].detach(), torch.nan)
        solution = Solution(phi.detach(), unsolved, taken, unknown, torch.zeros_like(unknown))
        return Adapted(phi, solution, objective, path)

    def _segments(self, exact_from: int, steps: int) -> list[range]:
        """The steps in consecutive parts; φ at the end of each is kept, and with ``checkpoint`` nothing between."""
        length = math.isqrt(max(1, steps - exact_from - 1)) + 1 if self.checkpoint else max(1, steps - exact_from)
        exact = [range(first, min(first + length, steps)) for first in range(exact_from, steps, length)]
        return ([range(exact_from)] if exact_from else []) + exact

    def _start(self, phi: Tensor) -> State:
        state = self.optimizer.start(phi)
        if self.outer_moments and self.outer_steps:
            state |= {name: self.get_buffer(f"outer_{name}").expand_as(phi) for name in self.optimizer.moments}
        return state

    def _walk(
        self, objective: InnerObjective, numbers: range, exact: bool, phi: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """φ and the state after the steps ``numbers`` (0, 1, ...)."""
        before = int(self.outer_steps) if self.outer_moments else 0
        for number in numbers:
            graph = exact and torch.is_grad_enabled()
            gradient = objective.gradient(phi) if graph else objective.value_and_gradient(phi)[1]
            expand = objective.network.expand
            options = {name: expand(each(number + 1), phi.shape[1]) for name, each in self.learned.items()}
            # Only a TorchRule, which is a dataclass, has something to learn.
            optimizer = replace(self.optimizer, **options) if options else self.optimizer  # type: ignore[type-var]
            phi, state = optimizer.update(phi, gradient, state, before + number + 1)
        return phi, state

    def _dependencies(self, objective: InnerObjective) -> list[Tensor]:
        """Every trained tensor on which a step depends, besides φ and the state."""
        own = (self.learned, self.optimizer)
        return [*objective.dependencies(), *(p for m in own if isinstance(m, nn.Module) for p in m.parameters())]


def checkpointed(
    walk: Callable[[Tensor, State], tuple[Tensor, State]], phi: Tensor, state: State, dependencies: Sequence[Tensor]
) -> tuple[Tensor, State]:
    """``walk(phi, state)`` that keeps its end alone; its graph is built in the backward pass.

    ``dependencies`` are the other tensors on which the walk depends, each once. (torch.utils.checkpoint would compute
    a segment again for every gradient that is taken inside it.)
    """
    before, after = list(state), list[str]()

    def flat(phi: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        phi, state = walk(phi, dict(zip(before, values, strict=True)))
        after[:] = state
        return phi, *state.values()

    phi, *values = _Segment.apply(flat, 1 + len(before), phi, *state.values(), *dependencies)
    return phi, dict(zip(after, values, strict=True))


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Callable[..., tuple[Tensor, ...]], moving: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.flat, ctx.moving = flat, moving
        ctx.save_for_backward(*tensors)
        ctx.generators = Generators(tensors[0].device)
        return flat(*tensors[:moving])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        starts = [t.detach().requires_grad_() for t in ctx.saved_tensors[: ctx.moving]]
        with torch.enable_grad(), ctx.generators.again():  # a network that draws, as dropout does, draws the same again
            ends = ctx.flat(*starts)
        inputs = [*starts, *ctx.saved_tensors[ctx.moving :]]
        return None, None, *torch.autograd.grad(ends, inputs, slopes, allow_unused=True)
