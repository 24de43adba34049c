"""Walk: steps of a differentiable optimizer on the inner objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imaml_lightning.optimizers import DifferentiableOptimizer, State
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.randomness import Generators


@dataclass(frozen=True)
class Walk:
    """φ_k = step(φ_{k−1}, ∇_φ G(φ_{k−1}, θ)), with the state that the optimizer carries from step to step.

    Attributes:
        optimizer: the rule of one step.
        learned: hyper-parameters of the optimizer that are learned, by name.
        moments: ``[param]`` each, by name, that the optimizer starts from in place of zero.
        before: steps that these moments have seen.
    """

    optimizer: DifferentiableOptimizer
    learned: Mapping[str, Any] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    before: int = 0

    def start(self, phi: Tensor) -> State:
        """The state before the first step, which is taken from ``phi [task, param]``."""
        return self.optimizer.start(phi) | {name: value.expand_as(phi) for name, value in self.moments.items()}

    def take(
        self, objective: InnerObjective, numbers: range, exact: bool, phi: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """φ and the state after the steps ``numbers`` (from 0), one gradient evaluation each.

        Where they are not ``exact``, ∇_φ G is taken as a constant.
        """
        for number in numbers:
            graph = exact and torch.is_grad_enabled()
            gradient = objective.gradient(phi) if graph else objective.value_and_gradient(phi)[1]
            expand = objective.network.expand
            options = {name: expand(each(number + 1), phi.shape[1]) for name, each in self.learned.items()}
            # Only a TorchRule, which is a dataclass, has something to learn.
            optimizer = replace(self.optimizer, **options) if options else self.optimizer  # type: ignore[type-var]
            phi, state = optimizer.update(phi, gradient, state, self.before + number + 1)
        return phi, state

    def take_checkpointed(
        self, objective: InnerObjective, numbers: range, phi: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """As ``take``, exact, but only the end is kept: what lies between is computed again in the backward pass."""
        own = [m for m in (*self.learned.values(), self.optimizer) if isinstance(m, nn.Module)]
        dependencies = [*objective.dependencies(), *(p for m in own for p in m.parameters())]
        return _checkpointed(partial(self.take, objective, numbers, True), phi, state, dependencies)


def _checkpointed(
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
