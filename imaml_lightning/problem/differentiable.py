"""Settings under which torch batches a network, and differentiates it twice, correctly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.transformer import TransformerEncoder, TransformerEncoderLayer
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from imaml_lightning.errors import UsageError

_OURS = ("torch", "imaml_lightning")
_ATTENTION = (nn.MultiheadAttention, TransformerEncoder, TransformerEncoderLayer, nn.Transformer)

Contexts = Sequence[Callable[[], contextlib.AbstractContextManager[Any]]]


def contexts(network: nn.Module) -> Contexts:
    """Within which to evaluate ``network``; none for most.

    Attention by its formula: its fused kernels have no second derivative, and in evaluation no batching rule. Recurrent
    layers without cuDNN, for the same reason. Weight normalisation by its formula: torch's own has a wrong second derivative
    (its gradgradcheck fails in torch 2.13). Checkpointed parts keep their activations: computed anew, when the functional
    call is over, they would be those of θ.
    """
    found: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []
    modules = [*network.modules()]
    own_code = any(type(m).__module__.split(".")[0] not in _OURS for m in modules)  # may call anything as a function
    attention = any(isinstance(m, _ATTENTION) for m in modules)
    if attention:
        found.append(_without_fast_path)
    if attention or own_code:
        found.append(lambda: sdpa_kernel(SDPBackend.MATH))
    if own_code:
        found.append(_without_checkpoints)
    if any(isinstance(m, nn.RNNBase) for m in modules):
        found.append(lambda: torch.backends.cudnn.flags(enabled=False))
    if any(_weight_norm(m) for m in modules):
        found.append(_WeightNormWritten)
    return found


@contextlib.contextmanager
def within(each: Contexts) -> Iterator[None]:
    """Within them all."""
    with contextlib.ExitStack() as stack:
        for make in each:
            stack.enter_context(make())
        yield


def alone(network: nn.Module) -> bool:
    """Whether tasks are to be evaluated one after the other: vmap adapts an embedding's row ``padding_idx`` without a word."""
    embeddings = [m for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return any(m.padding_idx is not None for m in embeddings)


def check_options(network: nn.Module, adapted: Sequence[Tensor]) -> None:
    """Refuse options of layers that make the network more than a function of ``adapted``, or its gradient that of no loss.

    Raises:
        UsageError: for the first of them.
    """
    for name, module in network.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and any(module.weight is tensor for tensor in adapted):
            reasons = {
                "max_norm": "its forward pass rewrites the weights that are adapted",
                "scale_grad_by_freq": "what it then gives is not the gradient of any loss",
                "sparse": "adapted parameters are one dense vector",
            }
            for option, why in reasons.items():
                if getattr(module, option):
                    raise UsageError(f"{name or type(module).__name__} has {option}, but {why}: leave {option} out")


def _weight_norm(module: nn.Module) -> bool:
    return isinstance(module, _WeightNorm) or any(
        isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()
    )


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """torch.utils.checkpoint calls the function and no more, in both its forms, which it looks up at each call."""

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _: bool, *arguments: Any) -> Any:
            return function(*arguments)

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    plain = {"CheckpointFunction": Plain, "_checkpoint_without_reentrant_generator": nothing}
    with contextlib.ExitStack() as stack:
        for name, replacement in plain.items():
            stack.enter_context(mock.patch.object(torch.utils.checkpoint, name, replacement))
        yield


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _WeightNormWritten(TorchFunctionMode):
    """torch._weight_norm(v, g, dim) as g v / ‖v‖, the norm over all axes but ``dim`` (all for −1)."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        if function is not torch._weight_norm:
            return function(*arguments, **(options or {}))

        def written(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
            others = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
            return v * (g / v.square().sum(others, keepdim=True).sqrt())

        return written(*arguments, **(options or {}))
