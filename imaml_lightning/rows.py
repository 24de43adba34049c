"""Row-wise algebra of ``[task, param]`` matrices."""

from __future__ import annotations

from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows ``[task, param]``, as a column ``[task, 1]``."""
    return (a * b).sum(1, keepdim=True)


def norm(a: Tensor) -> Tensor:
    """Euclidean norms of the rows ``[task, param]``, as a column ``[task, 1]``."""
    return a.norm(dim=1, keepdim=True)
