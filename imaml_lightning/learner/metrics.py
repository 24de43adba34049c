"""EpisodeMean: mean and 95% confidence interval over episodes, reduced over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpisodeMean(Metric):
    """Mean of one number per episode, with the half-width of its normal 95% interval, 1.96 s/√n.

    Kept are n, the mean and the sum of squared deviations from it, never a sum of squares, which would cancel where the
    mean is large beside the deviation. Values that are not finite are not left out: they make the mean not finite.

    Source: Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", equation 2.1.
    """

    full_state_update = False
    moments: Tensor  # n, mean, Σ (x − mean)²

    def __init__(self) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx=merged)
        self.set_dtype(torch.float64)

    def update(self, values: Tensor) -> None:
        """Take in ``values [task]``."""
        values = values.detach().double().flatten()
        if len(values):
            mean = values.mean()
            # A second pass, as the first mean is only good to rounding.
            mean = mean + (values - mean).mean()
            count = torch.full_like(mean, len(values))
            own = torch.stack([count, mean, (values - mean).square().sum()])
            # Not in place: a state that was reset under inference mode may not be changed outside it.
            self.moments = merged(torch.stack([self.moments, own]))

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``ci95``; the latter is not a number for fewer than two episodes."""
        count, mean, squares = self.moments
        mean = torch.where(count > 0, mean, torch.nan)
        return {"mean": mean, "ci95": 1.96 * (squares / (count - 1) / count).sqrt()}


def merged(parts: Tensor) -> Tensor:
    """The moments ``[3]`` (n, mean, sum of squared deviations) of all values, from those of parts of them ``[part, 3]``."""
    count, mean, squares = parts[parts[:, 0] > 0].unbind(1)
    if not len(count):
        return parts[0]
    total = count.sum()
    middle = mean[0] + (count * (mean - mean[0])).sum() / total
    return torch.stack([total, middle, (squares + count * (mean - middle).square()).sum()])
