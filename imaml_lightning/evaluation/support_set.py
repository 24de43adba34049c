"""SupportSet: a few labelled examples as a caller has them, as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples, check_pixels
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.criterion import ByTargets, check_criterion
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.targets import is_one_hot


@dataclass(frozen=True)
class SupportSet:
    """The examples of one task, and what its classes are called."""

    x: Tensor  # [example, *feature], floats
    y: Tensor  # [example] class numbers, or [example, output]
    labels: list[Any] | None  # of class numbers; None in regression

    @staticmethod
    def of(x: Any, y: Any, labels: Sequence[Any] | None, criterion: nn.Module) -> SupportSet:
        """The arguments of ``adapt``, for a learner of this criterion.

        Raises:
            UsageError: x and y do not belong together, or hold what is no number.
        """
        inputs, targets = as_inputs(x), _as_targets(y, criterion)
        if len(targets) != len(inputs) or not len(targets):
            raise UsageError(f"the support set has {len(inputs)} inputs and {len(targets)} targets: give one for each")
        if not inputs.isfinite().all() or (targets.dtype.kind == "f" and not np.isfinite(targets).all()):
            raise UsageError("the support set has numbers that are not finite: fill them, or leave their examples out")
        if targets.dtype.kind == "f":
            return SupportSet(inputs, torch.from_numpy(targets.astype(np.float32)).reshape(len(targets), -1), None)
        known = list(labels) if labels is not None else sorted(set(targets.tolist()))
        if unknown := set(targets.tolist()) - set(known):
            raise UsageError(f"class {min(unknown)} of the support set is none of {known}: correct it")
        return SupportSet(inputs, torch.tensor([known.index(label) for label in targets.tolist()]), known)

    @property
    def way(self) -> int | None:
        """Classes, those without an example among them; None in regression."""
        return None if self.labels is None else len(self.labels)

    def start(self, learner: MetaLearner) -> Tensor:
        """θ ``[param]``, of a network that is free in the number of classes for those of the support set."""
        return learner.flat.vector(self.way)

    def examples(self, learner: MetaLearner) -> Examples:
        """A batch of one task, for this learner."""
        like = self.start(learner)
        y = self.y.to(like.dtype) if self.labels is None else self.y
        return Examples(self.x.to(like.dtype).to(like.device)[None], y.to(like.device)[None])

    def check(self, learner: MetaLearner) -> None:
        """Refuse a learner that it does not fit.

        Raises:
            UsageError: the network cannot take the inputs, or has too few outputs, or another kind of them.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                examples = self.examples(learner)
                outputs = learner.flat.tasks(self.start(learner)[None], examples.x)
        except RuntimeError as error:
            shape = tuple(self.x.shape[1:])
            raise UsageError(
                f"the network cannot take inputs of shape {shape}: give them as in its training"
            ) from error
        width = outputs.shape[-1]
        if self.labels is not None and len(self.labels) > width:
            raise UsageError(
                f"the support set has {len(self.labels)} classes, the network {width} outputs: train one with "
                f"--data.way {len(self.labels)}, or take classes away"
            )
        if self.labels is None and width != self.y.shape[1]:
            raise UsageError(
                f"the targets have {self.y.shape[1]} values, the network {width} outputs: give classes as whole "
                "numbers or strings, and values as floats"
            )
        check_criterion(learner.criterion, outputs, examples.y)


def as_inputs(x: Any) -> Tensor:
    """Inputs as the network takes them: uint8 as floats from 0 to 1."""
    tensor = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).detach()
    tensor = tensor.clone() if tensor.is_inference() else tensor
    check_pixels(str(tensor.dtype).removeprefix("torch."), tensor.ndim)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def _as_targets(y: Any, criterion: nn.Module) -> np.ndarray:
    """Classes ``[example]``, also of ``[example, 1]`` and one-hot rows; or values ``[example]`` or ``[example, output]``."""
    targets: np.ndarray = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if targets.ndim != 2:
        return targets
    classes = isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss, ByTargets))
    if targets.shape[1] > 1 and targets.dtype.kind in ("biuf" if classes else "biu"):
        rows = torch.from_numpy(targets.astype(np.float64))
        if not is_one_hot(rows):
            return targets
        if isinstance(criterion, ByTargets) and targets.dtype.kind == "f":
            raise UsageError(
                "targets of 0. and 1. may be classes or values: give class numbers, or the learner its criterion"
            )
        return targets.argmax(1)
    return targets if targets.dtype.kind == "f" else targets[:, 0]
