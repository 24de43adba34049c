"""The second derivative of a convex criterion in the network's outputs, written out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.losses import without_padding
from imaml_lightning.problem.rows import any_left


def output_curvature(criterion: nn.Module, z: Tensor, examples: Examples) -> tuple[Tensor, bool]:
    """∂²L/∂z² of each example of each task, at outputs z ``[task, example, output]``.

    Returns:
        d ``[task, example, output]`` (or ``[task, example, 1]``, the same for all outputs), and whether the outputs of an
        example are coupled: the matrix of an example is diag(d) where they are not, else diag(d) − d dᵀ / Σ d.

    Raises:
        UsageError: for a criterion other than cross-entropy, a squared error, or one that has ``output_curvature``.
    """
    classes = not examples.y.is_floating_point()
    # As its class computes it, and with padding left out as here: no hooks, no class that is ignored besides.
    known = without_padding(criterion, classes) is not None and criterion.reduction != "none"
    if known and type(criterion) is nn.CrossEntropyLoss and criterion.weight is None:
        real = examples.real().unsqueeze(2).to(z.dtype)
        count = real.sum(1, keepdim=True) if criterion.reduction == "mean" else 1
        return z.softmax(2) * real / count, True
    if known and type(criterion) is nn.MSELoss:
        real = ~examples.y.isnan()
        count = real.sum((1, 2), keepdim=True) if criterion.reduction == "mean" else 1
        differ = any_left(real != real[..., :1])
        return 2 * (real if differ else real[..., :1]).to(z.dtype) / count, False
    own: Any = getattr(criterion, "output_curvature", None)
    if callable(own):
        return own(z, examples)
    raise UsageError(
        f"the exact inverse of a linear head's curvature is known for cross-entropy without class weights and for squared "
        f"errors, not for {type(criterion).__name__}: use LBFGS or HessianFree, and ConjugateGradient"
    )
