"""Statistics of a batch: which protocol they make of an evaluation, and where running ones have no place."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.cut import Cut


def protocol(network: nn.Module) -> str:
    """``transductive`` where a query batch is normalised by its own statistics, else ``inductive``."""
    batch_norm = any(isinstance(m, _BatchNorm) and not m.track_running_stats for m in network.modules())
    return "transductive" if batch_norm else "inductive"


def refuse_running_statistics(cut: Cut) -> None:
    """What is adapted is evaluated at many points for each task, of which running statistics would be a mixture.

    Raises:
        UsageError: naming the layer.
    """
    for name, module in cut.adapted.network.named_modules():
        if getattr(module, "track_running_stats", False):
            whole = f" (the network stays whole, because {cut.why_whole})" if cut.why_whole else ""
            raise UsageError(
                f"{type(module).__name__} {name} keeps running statistics among what is adapted{whole}: adapt only what comes "
                "after it, or build it with track_running_stats=False (--model.network.norm batch)"
            )
