"""Which Conv4 the written-out passes compute: recognised by its layers, since an edited network still has its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from imaml_lightning.models.parts import BodyAndHead


class Passes(NamedTuple):
    """What distinguishes one written-out Conv4 from another."""

    strided: bool  # convolutions of stride 2 in place of max pooling
    eps: float | None  # of batch normalisation; None if there is none


def recognise(network: BodyAndHead) -> Passes | None:
    """The passes that compute exactly what ``network`` computes now; None where it may be anything else.

    Four blocks of convolution, max pooling unless strided, ReLU and batch normalisation or none, and a linear head, all
    with the options that the passes have, untouched by hooks, and with no parameters but those, each used once.
    """
    if _has_any_global_hook() or list(network._modules) != ["body", "embedding", "head"]:
        return None
    body, embedding, head = network._modules.values()
    blocks = [] if body is None else [*body._modules.values()]
    flatten: list[Any] = [] if embedding is None else [*embedding._modules.values()]
    kinds = [type(m) for m in (body, *blocks, embedding, *flatten, head)]
    if kinds != [nn.Sequential] * 6 + [nn.Flatten, nn.Linear]:
        return None
    if [(m.start_dim, m.end_dim) for m in flatten if isinstance(m, nn.Flatten)] != [(1, -1)]:
        return None
    layers = [[*block._modules.values()] for block in blocks if block is not None]
    found = {_block(each) for each in layers}
    modules: list[Any] = [network, body, *blocks, *(m for block in layers for m in block), embedding, *flatten, head]
    if len(found) == 1 and None not in found and all(map(_as_its_class, modules)) and _only_their_parameters(modules):
        return found.pop()
    return None


def _block(layers: Sequence[Any]) -> Passes | None:
    """The passes of one block, if they are written out."""
    kinds = [type(layer) for layer in layers]
    strided, normalised = nn.MaxPool2d not in kinds, nn.BatchNorm2d in kinds
    expected = [nn.Conv2d, *[nn.MaxPool2d] * (not strided), nn.ReLU, *[nn.BatchNorm2d] * normalised]
    if kinds != expected or not _convolution(layers[0], 2 if strided else 1):
        return None
    if not strided and not _pooling(layers[1]):
        return None
    return Passes(strided, layers[-1].eps if normalised else None)


def _convolution(layer: nn.Conv2d, stride: int) -> bool:
    options = [*map(_pair, (layer.stride, layer.padding, layer.dilation)), layer.groups, layer.padding_mode]
    return options == [(stride, stride), (1, 1), (1, 1), 1, "zeros"] and layer.weight.shape[2:] == (3, 3)


def _pooling(layer: nn.MaxPool2d) -> bool:
    options = [*map(_pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation))]
    return options == [(2, 2), (2, 2), (0, 0), (1, 1)] and not layer.ceil_mode and not layer.return_indices


def _pair(option: Any) -> Any:
    return (option, option) if isinstance(option, int) else option


#: The kinds of modules of which the passes know what they compute, and their methods when torch was imported.
_METHODS: dict[type, dict[str, Any]] = {
    kind: {name: getattr(kind, name) for name in dir(kind) if callable(getattr(kind, name))}
    for kind in (nn.Sequential, nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.BatchNorm2d, nn.Flatten, nn.Linear, BodyAndHead)
}


def _as_its_class(module: nn.Module) -> bool:
    """Whether a module computes what its class did when it was imported: no hooks, no methods replaced."""
    kind = BodyAndHead if isinstance(module, BodyAndHead) else type(module)
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        not any(hooks)
        and _METHODS[kind].keys().isdisjoint(vars(module))
        and all(getattr(type(module), name, None) is _METHODS[kind].get(name) for name in ("forward", "_conv_forward"))
    )


def _only_their_parameters(modules: Sequence[nn.Module]) -> bool:
    """Whether there is nothing but a weight and a bias, in this order, of each layer that has them in the passes, each
    once, of one type, and no buffer: statistics that are kept are used in evaluation, whoever keeps them.
    """
    parameters = list[Any]()
    for module in modules:
        names = ["weight", "bias"] if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)) else []
        if list(module._parameters) != names or any(buffer is not None for buffer in module._buffers.values()):
            return False
        parameters += module._parameters.values()
    return (
        len({id(p) for p in parameters}) == len(parameters)
        and all(type(p) is nn.Parameter for p in parameters)
        and len({(p.dtype, p.device) for p in parameters}) == 1
    )
