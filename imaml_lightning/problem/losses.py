"""The criterion of each task, over its real examples alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from imaml_lightning.episode import IGNORED, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.batching import per_task
from imaml_lightning.problem.rows import any_left, may_sync
from imaml_lightning.problem.tensors import hooked

#: Of z ``[example, output]`` and y, a loss.
Criterion = Callable[[Tensor, Tensor], Tensor]

#: Criteria whose mean is that of one number for each entry of the outputs.
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss)


def task_losses(criterion: nn.Module, outputs: Tensor, examples: Examples) -> Tensor:
    """The criterion of each task's real examples ``[task]``, as if there were no padding.

    Padding is left out entry by entry where the criterion is known to be a mean or sum of entries, and by cross-entropy
    itself. To any other criterion (a learned one, say) each task's real examples are given alone.

    Raises:
        UsageError: the criterion does not give one number.
    """
    masked = without_padding(criterion, classes=not examples.y.is_floating_point())
    padded = masked is not criterion and any_left(~examples.real())
    if padded and masked is None and may_sync():
        rows = zip(outputs, examples.y, examples.real(), strict=True)
        of_tasks = [criterion(z[real], y[real]) for z, y, real in rows]
        _check_shape(criterion, of_tasks[0].shape)
        return torch.stack(of_tasks)
    if masked is not None and not padded:
        together = _together(criterion, outputs, examples.y)
        if together is not None:
            return together
    # Within no_sync padding goes into an unknown criterion; its loss is then not a number, which does not go unnoticed.
    losses = per_task(masked if padded and masked else criterion, outputs, examples.y)
    _check_shape(criterion, losses.shape[1:])
    return losses


def _together(criterion: Any, z: Tensor, y: Tensor) -> Tensor | None:
    """The criterion of all tasks ``[task]`` in a few operations; vmap takes ten times as long to launch the same ones.

    Only for torch's own losses, as they are, that are a mean or sum over examples; None for all others. A criterion with a
    method ``alike(classes)`` beside its ``forward`` says which of them it is.
    """
    classes = not y.is_floating_point()
    own = next((vars(each).get("alike") for each in type(criterion).__mro__ if "forward" in vars(each)), None)
    loss = own(criterion, classes) if own else criterion
    if getattr(loss, "reduction", "none") not in ("mean", "sum") or z.ndim != 3 or hooked(criterion):
        return None
    mean = loss.reduction == "mean"
    if type(loss) is nn.CrossEntropyLoss and classes and loss.weight is None and loss.ignore_index == IGNORED:
        entries = cross_entropy(
            z.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=loss.label_smoothing
        ).unflatten(0, y.shape)
        return entries.sum(1) / (y != IGNORED).sum(1) if mean else entries.sum(1)
    if type(loss) is nn.MSELoss and z.shape == y.shape:
        entries = mse_loss(z, y, reduction="none")
        return entries.mean((1, 2)) if mean else entries.sum((1, 2))
    return None


def _check_shape(criterion: nn.Module, shape: torch.Size) -> None:
    if shape:
        name = type(criterion).__name__
        raise UsageError(
            f"{name} gives numbers of shape {tuple(shape)} for a task: it must give one (reduction='mean')"
        )


def without_padding(criterion: nn.Module, classes: bool) -> Criterion | None:
    """The criterion of one task that leaves padding out, without reading on the host where it is; None if that is not known.

    Args:
        criterion: of outputs and targets; it may have a method ``without_padding(classes)`` that answers for it.
        classes: whether the targets are class numbers.
    """
    if "forward" in vars(criterion) or hooked(criterion):
        return None
    own: Any = getattr(criterion, "without_padding", None)
    if callable(own):
        return own(classes)
    if classes:
        by_itself = type(criterion) in (nn.CrossEntropyLoss, nn.NLLLoss) and criterion.ignore_index == IGNORED
        return criterion if by_itself else None
    if type(criterion) not in ELEMENTWISE or criterion.reduction not in ("mean", "sum"):
        return None
    each, mean = copy.copy(criterion), criterion.reduction == "mean"
    each.reduction = "none"  # type: ignore[assignment]  # a shallow copy, so the criterion keeps its own

    def over_real(z: Tensor, y: Tensor) -> Tensor:
        real, zero = ~y.isnan(), torch.zeros_like(z)
        # Padding is judged at 0 against 0, a constant without derivatives, and not added up.
        entries = torch.where(real, each(torch.where(real, z, zero), torch.where(real, y, zero)), zero)
        return entries.sum() / real.sum() if mean else entries.sum()

    return over_real
