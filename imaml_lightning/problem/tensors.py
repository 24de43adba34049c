"""Tensors of a network by their names, and what stands in the way of using them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from imaml_lightning.errors import UsageError


def hooked(module: nn.Module) -> bool:
    """Whether anything waits to be called around the module's forward or backward pass."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names) or _has_any_global_hook()


def check_adapted(
    network: nn.Module, adapt: Sequence[str], matching: dict[str, Tensor], adapted: dict[str, Tensor]
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


def per_class(network: nn.Module) -> dict[str, Tensor]:
    """The tensors, by name, that have one row for all classes."""
    return {
        f"{prefix}.{name}" if prefix else name: getattr(module, name)
        for prefix, module in network.named_modules()
        for name in getattr(module, "per_class", ())
    }


def tensor_of(network: nn.Module, key: str) -> Tensor:
    """A parameter or buffer by its name."""
    owner, _, name = key.rpartition(".")
    return getattr(network.get_submodule(owner), name)
