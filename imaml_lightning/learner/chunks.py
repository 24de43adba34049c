"""Tasks of a meta-step in chunks: how many together, and one backward pass through what they share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imaml_lightning.episode import Episode

#: Tasks that a CPU solves together. Measured with torch 2.13: 1.2 to 2.3 times faster than one by one (benchmarks/task_chunk.py).
CPU_CHUNK = 16

#: A chunk that was learned from, and the same with the leaves that its features' gradients were collected in.
Learned = tuple[Episode, Episode]


def leaves(chunk: Episode) -> Episode:
    """The chunk with features that are leaves, in which gradients are collected."""
    return Episode(*(part._replace(x=part.x.detach().requires_grad_(part.x.requires_grad)) for part in chunk))


def through_features(earlier: Sequence[Learned], loss_scale: float) -> Tensor | float:
    """A term whose derivative takes the gradients that ``earlier`` chunks have collected back through the shared part.

    Added to the last chunk's loss it makes a single backward pass of the shared part, in which ranks exchange gradients.
    """
    parts = [
        (part.x * (end.x.grad / loss_scale)).sum()
        for chunk, ends in earlier
        for part, end in zip(chunk, ends, strict=True)
        if end.x.grad is not None
    ]
    return torch.stack(parts).sum() if parts else 0.0
