"""A network as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imaml_lightning.errors import UsageError
from imaml_lightning.problem import differentiable
from imaml_lightning.problem.batching import never_batched, per_task
from imaml_lightning.problem.tensors import check_adapted, hooked, per_class, tensor_of


class Folded(Protocol):
    """A network at one point, evaluated for many tasks at once, with its derivatives; J = ∂outputs/∂parameters.

    A network that has a method ``fold`` from x ``[task, example, *feature]`` to an object whose ``at(parameters)`` gives
    this is evaluated so; Conv4 is the example. ``parameters`` are in the network's order, ``[task, *shape]`` each.
    """

    outputs: Tensor  # [task, example, output]

    def jvp(self, u: Sequence[Tensor]) -> Tensor:
        """J u ``[task, example, output]``; ``u`` shaped as the parameters, ``[task, *shape]`` each."""

    def vjp(self, g: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀ g, shaped as the parameters; ``keep`` it for ``vjp_derivative``."""

    def vjp_derivative(self, dg: Tensor) -> list[Tensor]:
        """The derivative of the last kept ``vjp`` Jᵀ g, along the direction u of the last ``jvp`` and along ``dg`` in g."""


class FlatNetwork:
    """``network`` as a function of the flat vector ``[param]`` of its adapted parameters.

    A tensor that a module names in ``per_class`` (a parameter, or a buffer where its start is not learned) has a first
    axis of length 1, which stands for every class: for a task of so many classes the flat vector has a row for each.
    ``[stored]`` is the length without such repetition; where there is none, ``[param]`` and ``[stored]`` are the same.

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
        repeated = per_class(network)
        aliases: dict[Tensor, list[str]] = {}
        for name, tensor in [*network.named_parameters(remove_duplicate=False), *repeated.items()]:
            aliases.setdefault(tensor, []).append(name)
        matching = {
            names[0]: tensor
            for tensor, names in aliases.items()
            if any(fnmatchcase(name, pattern) for name in names for pattern in adapt)
        }
        starts = {name for name, tensor in repeated.items() if not isinstance(tensor, nn.Parameter)}
        named = {name: tensor for name, tensor in matching.items() if tensor.requires_grad or name in starts}
        check_adapted(network, adapt, matching, named)
        differentiable.check_options(network, [*named.values()])
        self._prepare()
        self.names = self.keys = list(named)
        self.shapes = [tensor.shape for tensor in named.values()]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.repeated = [name in repeated for name in self.names]
        self._learned = [isinstance(tensor, nn.Parameter) for tensor in named.values()]

    def part(self, module: nn.Module, keys: Sequence[str]) -> FlatNetwork:
        """The same vector as a function of ``module``, a part of the network in which the tensors are called ``keys``."""
        part = copy(self)
        part.network, part.keys = module, list(keys)
        part._prepare()
        return part

    def _prepare(self) -> None:
        self._contexts = differentiable.contexts(self.network)
        if differentiable.alone(self.network):
            never_batched(self)

    @property
    def any_way(self) -> bool:
        """Whether tasks may have any number of classes."""
        return any(self.repeated)

    def vector(self, way: int | None = None) -> Tensor:
        """θ ``[param]`` for tasks of ``way`` classes (needed only where these are free); differentiable.

        Raises:
            UsageError: the number of classes is needed, or some of the parameters, not all, have been frozen since.
        """
        tensors = [tensor_of(self.network, key) for key in self.keys]
        learned = [(key, t) for key, t, is_learned in zip(self.keys, tensors, self._learned, strict=True) if is_learned]
        frozen = [key for key, tensor in learned if not tensor.requires_grad]
        if 0 < len(frozen) < len(learned):
            raise UsageError(f"{frozen[0]} was frozen when its learner was there: freeze before MetaLearner is made")
        if not self.any_way:
            return torch.cat([tensor.flatten() for tensor in tensors])
        if way is None:
            raise UsageError("the network is free in its number of classes: say for how many the vector is to be")
        rows = zip(tensors, self.repeated, strict=True)
        return torch.cat([(t.expand(way, *t.shape[1:]) if repeated else t).flatten() for t, repeated in rows])

    def expand(self, stored: Tensor, params: int) -> Tensor:
        """``[param]`` numbers from one number for each ``[stored]`` entry, those of a class being repeated; one stays one."""
        if stored.numel() in (1, params):
            return stored
        parts = zip(stored.split(self.sizes), self.repeated, strict=True)
        way = self._way(params)
        return torch.cat([part.repeat(way) if repeated else part for part, repeated in parts])

    def shared(self) -> list[nn.Parameter]:
        """The parameters that are meta-learned but not adapted."""
        adapted = set(self.keys)
        return [p for name, p in self.network.named_parameters() if name not in adapted]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """``vector [param]`` cut into tensors by their names in ``network``."""
        return {key: part[0] for key, part in zip(self.keys, self.split(vector.unsqueeze(0)), strict=True)}

    def split(self, rows: Tensor) -> list[Tensor]:
        """``rows [task, param]`` cut into one tensor a parameter, ``[task, *shape]``."""
        if not self.any_way:
            shapes, sizes = self.shapes, self.sizes
        else:
            way = self._way(rows.shape[1])
            owned = zip(self.shapes, self.repeated, strict=True)
            shapes = [torch.Size((way, *shape[1:])) if repeated else shape for shape, repeated in owned]
            sizes = [shape.numel() for shape in shapes]
        # As a view, also of a parameter that is one number and has no axes, which unflatten does not take.
        return [part.view(len(part), *shape) for part, shape in zip(rows.split(sizes, dim=1), shapes, strict=True)]

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
        if self.is_linear:
            return linear_outputs(self.split(phi), x)
        return _FoldedOutputs.apply(phi, self, x) if self.can_fold else per_task(self, phi, x)

    @property
    def is_linear(self) -> bool:
        """Whether what is adapted is one linear layer, all of it, and nothing else is done to its inputs and outputs."""
        layer = self.network
        plain = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer) and not hooked(layer)
        return (
            plain
            and self.keys in (["weight"], ["weight", "bias"])
            and (len(self.keys) == 2) == (getattr(layer, "bias", None) is not None)
        )

    @property
    def can_fold(self) -> bool:
        """Whether the network evaluates many tasks at once by itself: has ``fold``, as Conv4, adapts every parameter, and
        there is no autocast, which has its own idea of every layer's precision.
        """
        autocast = torch.is_autocast_enabled(tensor_of(self.network, self.keys[0]).device.type)
        return getattr(self.network, "fold", None) is not None and not self.shared() and not autocast

    def fold(self, x: Tensor) -> Callable[[Tensor], Folded]:
        """From φ ``[task, param]`` to the network's own evaluation of many tasks at once; only where ``can_fold``."""
        fold: Any = self.network.fold
        folded = fold(x)
        return lambda phi: folded.at(self.split(phi))

    def _way(self, params: int) -> int:
        """Classes of a vector of so many parameters."""
        fixed = sum(size for size, repeated in zip(self.sizes, self.repeated, strict=True) if not repeated)
        return (params - fixed) // (sum(self.sizes) - fixed)


def linear_outputs(layer: Sequence[Tensor], x: Tensor) -> Tensor:
    """x Wᵀ + b ``[task, example, output]`` of ``layer``: W ``[task, output, feature]`` and, if there is one, b ``[task, output]``."""
    weight, *bias = layer
    z = x @ weight.mT
    return z + bias[0].unsqueeze(1) if bias else z


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
        return ctx.network.join(folded.vjp(g)), None, None
