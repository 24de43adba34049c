"""Cut: a network split before its first adapted parameter, so that what comes before is evaluated once for each image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imaml_lightning.problem.feature_memory import FeatureMemory
from imaml_lightning.problem.function import leaves_of
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.tensors import hooked, tensor_of


class Cut:
    """A network as ``adapted(φ, features(x))``.

    The cut comes before the first module that holds an adapted parameter, in

    - chains of modules, of which each takes what the last one gives: ``nn.Sequential``, and networks whose class has a method
      ``chain`` beside its ``forward`` (the package's own have). Nested chains are taken apart, so the cut may lie
      between the layers of a block;
    - any other network one of whose modules holds all that is adapted and gives the network's output (a head). Every
      evaluation checks that it does; if not, the network is whole from then on, with a warning.

    Where neither holds, or something waits to be called around a chain (hooks), the network stays whole: ``features(x)`` is x.

    Args:
        flat: the whole network as a function of its adapted parameters.
        whole: why it has to stay whole; empty cuts it where that can be.

    Attributes:
        adapted: what comes after the cut, as a function of the same flat vector.
        module: what comes before it; None for a whole network.
        why_whole: why the network stays whole; empty where it is cut.
        memory: of features, set while the network stays as it is and is in evaluation mode; used without gradients on a CPU.
    """

    def __init__(self, flat: FlatNetwork, whole: str = "") -> None:
        self._flat, self._asked_whole = flat, whole
        self.memory: FeatureMemory | None = None
        self._cut()

    def _cut(self) -> None:
        flat = self._flat
        self.module: nn.Module | None = None
        self.adapted, self.why_whole = flat, self._asked_whole
        self._apart: bool | None = None
        self._head: _Head | None = None
        self._parts = self._look()
        if self.why_whole:
            return
        if self._parts[0] is flat.network:
            self._cut_before_head(flat)
        else:
            self._cut_chain(flat, self._parts)

    def _look(self) -> list[nn.Module]:
        """The modules of the chain that the network is; else the network, and its head if that can be cut off."""
        chain = _chain(self._flat.network)
        if chain is not None:
            return chain
        owner = _common_owner({name.rpartition(".")[0] for name in self._flat.names})
        head = self._flat.network.get_submodule(owner)
        return [self._flat.network] if hooked(head) else [self._flat.network, head]

    def _follow_edits(self) -> None:
        """Cut anew a network of which modules were exchanged, or around which hooks were hung, since it was cut."""
        if list(map(id, self._look())) != list(map(id, self._parts)):
            self.memory = self.memory and FeatureMemory()
            self._cut()

    @property
    def whole(self) -> bool:
        """Whether there is nothing to evaluate once."""
        return self.module is None

    def features(self, *sets: Tensor) -> tuple[Tensor, ...]:
        """The features ``[task, example, *feature]`` of sets of inputs ``[task, example, *feature]``, differentiable.

        All images pass the shared part together, once. If it makes other features of an image in other company (batch
        normalisation without running statistics), each task's support and query set pass it by themselves, as they would the
        whole network. In training ordinary batch normalisation takes its statistics over all images of the call.
        """
        self._follow_edits()
        try:
            features = self._features(*sets)
            like = tensor_of(self._flat.network, self._flat.names[0])
            # Under autocast they come in half precision; the full precision of certificates begins here.
            return features if self.whole else tuple(x.to(like) for x in features)
        except _NoEndError as error:
            self._stay_whole(str(error))
            return sets

    def _features(self, *sets: Tensor) -> tuple[Tensor, ...]:
        if self.whole:
            return sets
        if self._apart is None and sum(x.shape[:2].numel() for x in sets) > 2:
            self._apart = self._depends_on_company(torch.cat([x.flatten(0, 1) for x in sets]))
        if self._apart is not False:
            return tuple(torch.stack([self._evaluate(task) for task in x]) for x in sets)
        images = torch.cat([x.flatten(0, 1) for x in sets])
        if self.memory is not None and not torch.is_grad_enabled() and images.device.type == "cpu":
            together = self.memory.of(images, self._evaluate)
        else:
            together = self._evaluate(images)
        parts = together.split([x.shape[0] * x.shape[1] for x in sets])
        return tuple(part.unflatten(0, x.shape[:2]) for part, x in zip(parts, sets, strict=True))

    def _evaluate(self, x: Tensor) -> Tensor:
        assert self.module is not None
        return self.module(x) if self._head is None else self._head.input_of(self.module, x)

    def _depends_on_company(self, x: Tensor) -> bool:
        """Whether in evaluation an image's features depend on the other images of its batch."""
        assert self.module is not None
        chosen = x[:5]
        # Of integers (words, say) other ones may have no meaning, so there the company is only made smaller.
        other = torch.cat([chosen[:1], 0.25 + chosen[1:] / 2]) if x.is_floating_point() else chosen[:2]
        with answering(self.module), torch.no_grad(), torch.random.fork_rng():
            here, there = self._evaluate(chosen), self._evaluate(other)
        return bool((here[:1] - there[:1]).abs().amax() > 1e-3 * here.abs().amax())

    def _stay_whole(self, why: str) -> None:
        self.module, self.adapted, self.why_whole = None, self._flat, why
        warnings.warn(f"every inner step evaluates the whole network, because {why}", stacklevel=3)

    def _cut_chain(self, flat: FlatNetwork, chain: Sequence[nn.Module]) -> None:
        adapted = {id(tensor_of(flat.network, name)) for name in flat.names}
        first = next(i for i, m in enumerate(chain) if any(id(t) in adapted for t in _tensors(m).values()))
        if first == 0:
            self.why_whole = "its first layer is adapted"
            return
        rest = chain[first] if first == len(chain) - 1 else nn.Sequential(*chain[first:])
        keys = {id(tensor): key for key, tensor in reversed(_tensors(rest).items())}
        self.module = _arranged(nn.Sequential(*chain[:first]))
        self.adapted = flat.part(rest, [keys[id(tensor_of(flat.network, name))] for name in flat.names])

    def _cut_before_head(self, flat: FlatNetwork) -> None:
        owners = {name.rpartition(".")[0] for name in flat.names}
        owner = _common_owner(owners)
        if not owner:
            self.why_whole = "it is no chain of modules, and no single module of it holds all that is adapted"
            return
        head = flat.network.get_submodule(owner)
        if hooked(head):
            self.why_whole = f"hooks wait to be called around {owner}"
            return
        self._head = _Head(head, owner, flat)
        self.module = _arranged(flat.network)
        self.adapted = flat.part(head, [name.removeprefix(f"{owner}.") for name in flat.names])


def _arranged(module: Any) -> Any:
    """Its numbers in another order in memory, in which a CPU convolves one and a half times as fast."""
    return module.to(memory_format=torch.channels_last)


class _NoEndError(Exception):
    """A head is not just the end of its network."""


class _Head:
    """A module of a network that gives the network's output, and of whose inputs the features are."""

    def __init__(self, head: nn.Module, name: str, flat: FlatNetwork) -> None:
        self.head, self.name = head, name
        self.adapted = [tensor_of(flat.network, each) for each in flat.names]

    def input_of(self, network: nn.Module, x: Tensor) -> Tensor:
        """What enters the head; _NoEndError if the network does more with it than to return what it says of one tensor."""
        calls: list[tuple[tuple, dict, object]] = []
        keep = self.head.register_forward_hook(
            lambda _, inputs, named, output: calls.append((inputs, named, output)), with_kwargs=True
        )
        try:
            output = network(x)
        finally:
            keep.remove()
        if problem := self._problem(calls, output):
            raise _NoEndError(f"{self.name} of {type(network).__name__} cannot stand alone: {problem}")
        features = calls[0][0][0]
        assert isinstance(features, Tensor)
        return features

    def _problem(self, calls: list[tuple[tuple, dict, object]], output: object) -> str:
        if len(calls) != 1:
            return f"it is called {len(calls)} times"
        inputs, named, said = calls[0]
        if named or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            return "it takes more than one tensor"
        if said is not output:
            return "its output is not that of the network"
        if {id(p) for p in self.adapted} & {id(leaf) for leaf in leaves_of(inputs[0])}:
            return "its parameters are used before it too"
        return ""


def _chain(network: nn.Module) -> list[nn.Module] | None:
    """The modules that the network applies one after the other, if that is all it does; those of nested chains too."""
    if hooked(network) or "forward" in vars(network):
        return None
    if type(network) is nn.Sequential:
        parts = list(network)
    elif hasattr(network, "chain") and _definer(network, "chain") is _definer(network, "forward"):
        own: Any = network
        parts = own.chain()
    else:
        return None
    return [module for part in parts for module in (_chain(part) or [part])]


def _definer(network: nn.Module, name: str) -> type | None:
    """The class from which the network has a method: a subclass may have changed one of two that belong together."""
    return next((each for each in type(network).__mro__ if name in vars(each)), None)


def _common_owner(owners: set[str]) -> str:
    """The innermost module that holds all of ``owners``; empty for the network itself."""
    paths = [owner.split(".") for owner in owners]
    common = []
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, under all their names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
