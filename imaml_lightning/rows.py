"""Row-wise algebra of ``[task, param]`` matrices."""

from __future__ import annotations

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

    On a CPU, where looking is free, rows that are all new are not copied.
    """
    if mask.device.type == "cpu" and mask.all():
        return new
    return torch.where(mask, new, old)
