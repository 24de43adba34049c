"""The loss that targets ask for, and refusal of one that contradicts them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.losses import Criterion, without_padding
from imaml_lightning.problem.output_curvature import output_curvature

#: Losses of outputs against class numbers.
_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
#: Losses of each output against a value of its own.
_OF_VALUES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)


class ByTargets(nn.Module):
    """Mean cross-entropy where targets are class numbers, mean squared error where they are values."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"  # as torch's losses have it

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the examples of one task: outputs ``[example, output]``, targets ``[example]`` whole numbers or
        ``[example, output]`` floats."""
        loss = mse_loss if targets.is_floating_point() else cross_entropy
        return loss(outputs, targets, reduction=self.reduction)

    def output_curvature(self, z: Tensor, examples: Examples) -> tuple[Tensor, bool]:
        """As the function of this name has it for the loss that the targets ask for."""
        return output_curvature(self.alike(not examples.y.is_floating_point()), z, examples)

    def without_padding(self, classes: bool) -> Criterion | None:
        """As the function of this name has it for the loss that the targets ask for."""
        loss = self.alike(classes)
        found = without_padding(loss, classes)
        return self if found is loss else found

    def alike(self, classes: bool) -> nn.Module:
        """The loss of torch that this is for such targets."""
        return (nn.CrossEntropyLoss if classes else nn.MSELoss)(reduction=self.reduction)


def check_criterion(criterion: nn.Module, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that would give a number without a meaning for such targets.

    Args:
        criterion: the loss. One that is not torch's own is taken to know what it does.
        outputs: of the network, ``[…, output]``.
        targets: class numbers, or values ``[…, value]``; padding is NaN.

    Raises:
        UsageError: naming the loss to use.
    """
    name, outputs_each = type(criterion).__name__, outputs.shape[-1]
    if not targets.is_floating_point():
        if isinstance(criterion, _OF_VALUES):
            raise UsageError(
                f"{name} is a loss of values, and the targets are classes: use CrossEntropyLoss, or leave the criterion out"
            )
        return
    values = targets.shape[-1]
    if isinstance(criterion, _OF_CLASSES) and not (isinstance(criterion, nn.CrossEntropyLoss) and _shares(targets)):
        raise UsageError(
            f"{name} is a loss of classes, and the targets are values: use MSELoss, or leave the criterion out"
        )
    if isinstance(criterion, (ByTargets, *_OF_VALUES)) and values != outputs_each:
        raise UsageError(
            f"a target has {values} values and the network {outputs_each} outputs: give the network {values} outputs"
        )


def _shares(targets: Tensor) -> bool:
    """Whether each target is a probability of each of several classes, which cross-entropy takes as well."""
    real = targets[~targets.isnan().any(-1)]
    return targets.shape[-1] > 1 and bool((real >= 0).all() and ((real.sum(-1) - 1).abs() < 1e-3).all())
