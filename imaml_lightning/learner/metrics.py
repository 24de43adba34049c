"""EpisodeMean: mean and 95% confidence interval over episodes, reduced over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpisodeMean(Metric):
    """Mean of one number per episode, with the half-width of its normal 95% interval, 1.96 s/√n.

    Values that are not finite are not left out: they make the mean not finite.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, values: Tensor) -> None:
        """Take in ``values [task]``."""
        values = values.detach().double()
        # Not in place: a state that was reset under inference mode may not be changed outside it.
        self.total = self.total + values.sum()
        self.squares = self.squares + values.square().sum()
        self.count = self.count + values.numel()

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``ci95``; the latter is not a number for fewer than two episodes."""
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return {"mean": mean, "ci95": 1.96 * (variance / self.count).sqrt()}
