"""A network as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imaml_lightning import differentiable
from imaml_lightning.batching import never_batched, per_task
from imaml_lightning.errors import UsageError


class Folded(Protocol):
    """A network at one point, evaluated for many tasks at once, with its derivatives; J = ∂outputs/∂parameters.

    A network that has a method ``fold`` from x ``[task, example, *feature]`` to an object whose ``at(parameters)`` gives
    this is evaluated so; Conv4 is the example. ``parameters`` are in the network's order, ``[task, *shape]`` each.
    """

    outputs: Tensor  # [task, example, output]

    def tangent(self, u: Sequence[Tensor]) -> Tensor:
        """J u ``[task, example, output]``; ``u`` shaped as the parameters, ``[task, *shape]`` each."""

    def cotangent(self, g: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters; ``keep`` it for ``bend``."""

    def bend(self, dg: Tensor) -> list[Tensor]:
        """The change of the Jᵀ g that was kept, along the last ``tangent``'s u, when g changes by ``dg``."""


class FlatNetwork:
    """``network`` as a function of the flat vector ``[param]`` of its adapted parameters.

    Which these are is settled here, once. Frozen parameters (``requires_grad=False``) are never among them.

    Args:
        network: any module without buffers that its forward pass changes.
        adapt: name patterns (``head.*``); the parameters that match one, by any of their names where several layers share
            one, are adapted to each task, in the network's own order. All others keep their meta-learned values.

    Raises:
        UsageError: if no parameter matches, or those that do cannot stand in one vector.
    """

    def __init__(self, network: nn.Module, adapt: Sequence[str] = ("*",)) -> None:
        self.network = network
        aliases: dict[nn.Parameter, list[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            aliases.setdefault(parameter, []).append(name)
        matching = {
            names[0]: parameter
            for parameter, names in aliases.items()
            if any(fnmatchcase(name, pattern) for name in names for pattern in adapt)
        }
        named = {name: parameter for name, parameter in matching.items() if parameter.requires_grad}
        _check_adapted(network, adapt, matching, named)
        differentiable.check_options(network, set(named.values()))
        self._contexts = differentiable.contexts(network)
        if differentiable.alone(network):
            never_batched(self)
        self.names = list(named)
        self.shapes = [parameter.shape for parameter in named.values()]
        self.sizes = [shape.numel() for shape in self.shapes]

    def vector(self) -> Tensor:
        """θ ``[param]``: the adapted parameters as one vector; differentiable.

        Raises:
            UsageError: some of them, not all, have been frozen since.
        """
        parameters = {name: self.network.get_parameter(name) for name in self.names}
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        if 0 < len(frozen) < len(parameters):
            raise UsageError(f"{frozen[0]} was frozen when its learner was there: freeze before MetaLearner is made")
        return torch.cat([parameter.flatten() for parameter in parameters.values()])

    def shared(self) -> list[nn.Parameter]:
        """The parameters that are meta-learned but not adapted."""
        return [p for name, p in self.network.named_parameters() if name not in set(self.names)]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """``vector [param]`` cut into tensors by parameter name."""
        parts = vector.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def split(self, rows: Tensor) -> list[Tensor]:
        """``rows [task, param]`` cut into one tensor a parameter, ``[task, *shape]``."""
        parts = rows.split(self.sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, parameters: Sequence[Tensor]) -> Tensor:
        """The inverse of ``split``."""
        rows = parameters[0].new_empty(len(parameters[0]), sum(self.sizes))
        for part, values in zip(self.split(rows), parameters, strict=True):
            part.copy_(values)
        return rows

    def __call__(self, vector: Tensor, x: Tensor) -> Tensor:
        """The network's outputs ``[example, output]`` at ``vector [param]`` for ``x [example, *feature]``."""
        if not self._contexts:
            return functional_call(self.network, self.named(vector), (x,))
        with differentiable.within(self._contexts):
            return functional_call(self.network, self.named(vector), (x,))

    def tasks(self, phi: Tensor, x: Tensor) -> Tensor:
        """The outputs ``[task, example, output]`` of every task, at ``phi [task, param]`` for ``x [task, example, *feature]``."""
        return _FoldedOutputs.apply(phi, self, x) if self.can_fold else per_task(self, phi, x)

    @property
    def can_fold(self) -> bool:
        """Whether the network evaluates many tasks at once by itself: has ``fold``, as Conv4, adapts every parameter, and
        there is no autocast, which has its own idea of every layer's precision.
        """
        autocast = torch.is_autocast_enabled(self.network.get_parameter(self.names[0]).device.type)
        return getattr(self.network, "fold", None) is not None and not self.shared() and not autocast

    def fold(self, x: Tensor) -> Callable[[Tensor], Folded]:
        """From φ ``[task, param]`` to the network's own evaluation of many tasks at once; only where ``can_fold``."""
        fold: Any = self.network.fold
        folded = fold(x)
        return lambda phi: folded.at(self.split(phi))


def _check_adapted(
    network: nn.Module, adapt: Sequence[str], matching: dict[str, nn.Parameter], adapted: dict[str, nn.Parameter]
) -> None:
    """Refuse parameters that cannot be adapted; ``adapted`` are those ``matching`` that are not frozen."""
    owner, patterns = type(network).__name__, f"adapt={list(adapt)}"
    if not matching:
        names = [name for name, _ in network.named_parameters()]
        raise UsageError(f"no parameter of {owner} matches {patterns}: use patterns of {names}")
    if not adapted:
        raise UsageError(
            f"all parameters of {owner} that match {patterns} are frozen: set requires_grad of {list(matching)}"
        )
    for name, parameter in adapted.items():
        if nn.parameter.is_lazy(parameter):
            raise UsageError(f"{name} of {owner} has no shape yet: evaluate the network on some inputs once")
        if not parameter.is_floating_point():
            raise UsageError(f"{name} of {owner} is {parameter.dtype}: freeze it, or make it real floating point")
    if len(types := {parameter.dtype for parameter in adapted.values()}) > 1:
        raise UsageError(f"adapted parameters of {owner} are of types {sorted(map(str, types))}: make them one type")


class _FoldedOutputs(torch.autograd.Function):
    """The outputs as a function of φ, differentiable once; its activations go with the first derivative."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, network: FlatNetwork, x: Tensor) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.network, ctx.fold = network, network.fold(x)
        ctx.folded = ctx.fold(phi)
        return ctx.folded.outputs.detach()  # themselves they would close a cycle with their node

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        folded, ctx.folded = ctx.folded or ctx.fold(*ctx.saved_tensors), None
        return ctx.network.join(folded.cotangent(g)), None, None
