"""Row-wise algebra of ``[task, param]`` matrices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows ``[task, param]``, as a column ``[task, 1]``."""
    return (a * b).sum(1, keepdim=True)


def norm(a: Tensor) -> Tensor:
    """Euclidean norms of the rows ``[task, param]``, as a column ``[task, 1]``."""
    return a.norm(dim=1, keepdim=True)


def select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Row by row ``new [task, param]`` where ``mask [task, 1]``, else ``old``.

    On a CPU, where reading a value is free, rows that are all new are not copied.
    """
    if _sync and mask.device.type == "cpu" and mask.all():
        return new
    return torch.where(mask, new, old)


_sync = True


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Within it no loop reads tensor values on the host, so that nothing waits for the device and the work can be recorded.

    Loops then end by their step limits alone; tasks that have ended stay where they are, as ever.
    """
    global _sync  # not of one thread: backward passes on a device have a thread of their own
    before, _sync = _sync, False
    try:
        yield
    finally:
        _sync = before


def may_sync() -> bool:
    """Whether loops may read tensor values."""
    return _sync


def any_left(mask: Tensor) -> bool:
    """Whether any entry of ``mask`` is true, so that there is work left; within ``no_sync`` always yes."""
    return not _sync or bool(mask.any())
