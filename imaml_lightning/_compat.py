"""The import of torchvision, repaired where its version and torch's do not match.

Nothing that exists is ever replaced: the repair first looks whether the thing is there.
"""

from __future__ import annotations

import importlib
import sys

import torch

#: Operators whose schemas torchvision's Python half expects its compiled half to have declared.
_TORCHVISION_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

#: A Library withdraws its declarations when it is collected, so it is kept here.
_declared: list[torch.library.Library] = []


def repair_torchvision() -> bool:
    """Make ``import torchvision`` work beside a torch of another build; True if a repair was needed.

    PyPI's torchvision beside a CPU-only torch fails with "operator torchvision::nms does not exist",
    and then so do lightning and torchmetrics, which look for it: call this before importing them.
    The missing schemas are declared without an implementation, so image transforms work and box
    operators still say that they are unavailable. A missing torchvision is left missing.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return False
    _declare_missing_operators()
    # The failed import leaves submodules behind that were run against the missing operators.
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    importlib.import_module("torchvision")
    return True


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _TORCHVISION_OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
