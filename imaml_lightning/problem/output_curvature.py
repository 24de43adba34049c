"""The second derivative of a convex criterion in the network's outputs, written out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError


def output_curvature(criterion: nn.Module, z: Tensor, examples: Examples) -> tuple[Tensor, bool]:
    """∂²L/∂z² of each example of each task, at outputs z ``[task, example, output]``.

    Returns:
        d ``[task, example, output]`` (or ``[task, example, 1]``, the same for all outputs), and whether the outputs of an
        example are coupled: the matrix of an example is diag(d) where they are not, else diag(d) − d dᵀ / Σ d.

    Raises:
        UsageError: for a criterion other than cross-entropy, a squared error, or one that has ``output_curvature``.
    """
    real = examples.real().unsqueeze(2).to(z.dtype)
    if type(criterion) is nn.CrossEntropyLoss and criterion.reduction != "none" and criterion.weight is None:
        count = real.sum(1, keepdim=True) if criterion.reduction == "mean" else 1
        return z.softmax(2) * real / count, True
    if type(criterion) is nn.MSELoss and criterion.reduction != "none":
        count = real.sum(1, keepdim=True) * z.shape[2] if criterion.reduction == "mean" else 1
        return 2 * real / count, False
    own: Any = getattr(criterion, "output_curvature", None)
    if own is not None:
        return own(z, examples)
    raise UsageError(
        f"the exact inverse of a linear head's curvature is known for cross-entropy without class weights and for squared "
        f"errors, not for {type(criterion).__name__}: use LBFGS or HessianFree, and ConjugateGradient"
    )
