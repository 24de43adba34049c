"""Arguments: what a user's G(φ, *meta) or F(φ, *meta) is called with, as solvers and autograd take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from imaml_lightning.errors import UsageError


class Layout:
    """A tensor, or tensors in dicts, lists and tuples, as the rows of one matrix ``[task, param]``.

    Args:
        example: what all others are like.
        batched: whether the first axis of every tensor is that of tasks; if not, there is one task.

    Raises:
        UsageError: if the tensors are not real floating point of one type on one device, or their first axes differ.
    """

    def __init__(self, example: Any, batched: bool) -> None:
        tensors, self._tree = tree_flatten(example)
        if not tensors or not all(isinstance(t, Tensor) and t.is_floating_point() for t in tensors):
            raise UsageError("start must be a tensor of real floating point numbers, or a dict of such tensors")
        if len(kinds := {(str(t.dtype), str(t.device)) for t in tensors}) > 1:
            raise UsageError(f"the tensors of start are of {sorted(kinds)}: make them one type on one device")
        if batched and (any(t.dim() == 0 for t in tensors) or len({len(t) for t in tensors}) > 1):
            raise UsageError("batched=True needs tensors in start whose first axis is that of problems, of one length")
        self.tasks = len(tensors[0]) if batched else 1
        self.shapes = [t.shape for t in tensors]
        self._sizes = [t.numel() // max(self.tasks, 1) for t in tensors]

    def join(self, structure: Any) -> Tensor:
        """``[task, param]``."""
        tensors, tree = tree_flatten(structure)
        if tree != self._tree or [getattr(t, "shape", None) for t in tensors] != self.shapes:
            found = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in tensors]
            raise UsageError(f"F must return what is like φ, {[*map(tuple, self.shapes)]}; it returned {found}")
        return torch.cat([t.reshape(self.tasks, -1) for t in tensors], 1)

    def split(self, rows: Tensor) -> Any:
        """What ``rows [task, param]`` stand for; more axes behind are kept."""
        parts = rows.split(self._sizes, 1)
        shaped = [part.reshape((*shape, *rows.shape[2:])) for part, shape in zip(parts, self.shapes, strict=True)]
        return tree_unflatten(shaped, self._tree)


class Arguments:
    """φ as rows, and the tensors of meta in which the solution is to be differentiated.

    Args:
        function: of φ, in the structure of ``start``, and of ``*meta``.
        start: φ.
        meta: tensors that need a gradient (or have a tangent), also in dicts, lists and tuples; anything else is handed on.
        batched: whether there is a problem for each entry of φ's first axis.
    """

    def __init__(self, function: Callable[..., Any], start: Any, meta: tuple[Any, ...], batched: bool) -> None:
        self.layout = Layout(start, batched)
        self.start = self.layout.join(start).detach()
        self._function, self._batched = function, batched
        self._meta, self._tree = tree_flatten(meta)
        self._moving = [number for number, m in enumerate(self._meta) if _moves(m)]
        self.tensors: list[Tensor] = [self._meta[number] for number in self._moving]

    def numbers(self, phi: Tensor, *tensors: Tensor) -> Tensor:
        """G ``[task]`` of φ ``[task, param]`` and of what stands for the tensors."""
        value = self._call(phi, tensors)
        expected = (self.layout.tasks,) if self._batched else ()
        if not isinstance(value, Tensor) or value.shape != expected or not value.is_floating_point():
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            wanted = f"one number for each of {self.layout.tasks} problems" if self._batched else "one number"
            raise UsageError(f"G must return {wanted}, a real tensor of shape {expected}; it returned {found}")
        return value.reshape(self.layout.tasks)

    def rows(self, phi: Tensor, *tensors: Tensor) -> Tensor:
        """F ``[task, param]``."""
        return self.layout.join(self._call(phi, tensors))

    def name(self, number: int) -> str:
        """Where the tensor stands in meta."""
        paths, _ = tree_flatten_with_path(tree_unflatten(self._meta, self._tree))
        return f"meta{keystr(paths[self._moving[number]][0])}"

    def _call(self, phi: Tensor, tensors: tuple[Tensor, ...]) -> Any:
        meta = list(self._meta)
        for number, tensor in zip(self._moving, tensors, strict=True):
            meta[number] = tensor
        return self._function(self.layout.split(phi), *tree_unflatten(meta, self._tree))


def _moves(m: Any) -> bool:
    if not isinstance(m, Tensor):
        return False
    return (m.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(m).tangent is not None
