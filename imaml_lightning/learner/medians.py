"""EpisodeMedian: the median over episodes, of all ranks together."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpisodeMedian(Metric):
    """Median of one number per episode: what a few diverged tasks cannot move. What is not a number counts as infinite."""

    full_state_update = False
    values: list[Tensor] | Tensor  # a list until it is reduced

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Take in ``values [task]``."""
        assert isinstance(self.values, list)
        self.values.append(values.detach().float().flatten())

    def compute(self) -> Tensor:
        """The median, the mean of the two in the middle where their number is even."""
        values = torch.cat(self.values) if isinstance(self.values, list) else self.values
        ordered = torch.where(values.isnan(), torch.inf, values).sort().values
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
