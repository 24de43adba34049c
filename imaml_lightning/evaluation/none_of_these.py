"""None of these: how sure a predictor has to be for an example to belong to one of its classes at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.evaluation.predictor import Predictor

_CLASSES = 30  # that are left out in turn, at most


@dataclass(frozen=True)
class Threshold:
    """Below ``probability``, the largest of an example, it is said to be none of the classes.

    Attributes:
        probability: the threshold.
        missed: share of examples of the classes that it would turn away.
        taken: share of examples of other classes that it would take for one of these.
    """

    probability: float
    missed: float
    taken: float

    def __str__(self) -> str:
        return (
            f"below p = {self.probability:.4g}; of these classes {self.missed:.1%} would be turned away, of others "
            f"{self.taken:.1%} be taken for one of these (left out in turn)"
        )


def none_of_these(predictor: Predictor) -> Threshold | None:
    """The threshold with the least mean of both errors, measured on the support set.

    Known examples are those left out in turn; unknown ones are those of a class, asked of the predictor without that class.
    Each error is of a class under the threshold of all others, so that no example chooses the one it is judged by. None where
    there are fewer than three classes or no two examples of one. Costs an adaptation a class. Source: the largest probability
    is the baseline of Hendrycks and Gimpel (2017).
    """
    labels = predictor.labels
    if labels is None or len(labels) < 3:
        return None
    probabilities, truth, _ = predictor.left_out()
    if not len(truth):
        return None
    known = [probabilities[truth == number].amax(1) for number in range(len(labels))]
    unknown = [torch.empty(0) for _ in labels]
    for number in np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _CLASSES)).round().astype(int)).tolist():
        of_it = predictor.support.x[predictor.support.y == number]
        if len(of_it):
            unknown[number] = predictor.without_class(number)(of_it).amax(1)
    errors = [_errors(_best(_others(known, i), _others(unknown, i)), known[i], unknown[i]) for i in range(len(labels))]
    missed, taken = (float(torch.cat(parts).double().mean()) for parts in zip(*errors, strict=True))
    return Threshold(_best(torch.cat(known), torch.cat(unknown)), missed, taken)


def _others(scores: list[Tensor], number: int) -> Tensor:
    return torch.cat([each for i, each in enumerate(scores) if i != number])


def _best(known: Tensor, unknown: Tensor) -> float:
    """The threshold of the least mean error, halfway between two scores."""
    scores = torch.cat([known, unknown]).unique()
    middles = torch.cat([scores[:1], (scores[1:] + scores[:-1]) / 2])
    missed = (known[None] < middles[:, None]).double().mean(1).nan_to_num()
    taken = (unknown[None] >= middles[:, None]).double().mean(1).nan_to_num()
    return float(middles[(missed + taken).argmin()])


def _errors(threshold: float, known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    return known < threshold, unknown >= threshold
