"""Import repairs for mismatched versions of torchvision and torchmeta, each applied only where needed.

Nothing that exists is ever replaced: every repair first looks whether the thing is there.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

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


def repair_torchmeta() -> None:
    """Import torchmeta 1.8.0, its last release, and mend what newer torch and torchvision took away.

    Raises:
        ModuleNotFoundError: torchmeta, or a package it needs, is not installed.
    """
    vision = importlib.import_module("torchvision.datasets.utils")
    # Only torchmeta's Google Drive downloads call these two, but its import asks for them.
    for name, helper in (
        ("_get_confirm_token", _get_confirm_token),
        ("_save_response_content", _save_response_content),
    ):
        if not hasattr(vision, name):
            setattr(vision, name, helper)

    utils = importlib.import_module("torchmeta.datasets.utils")
    if not hasattr(utils, "check_integrity"):  # used there without being imported
        utils.check_integrity = vision.check_integrity  # type: ignore[attr-defined]

    task = importlib.import_module("torchmeta.utils.data.task").SubsetTask
    # torch's Subset reads batches by __getitems__, and refuses in a subclass that overrides
    # __getitem__ alone, as torchmeta's SubsetTask does.
    if hasattr(Subset, "__getitems__") and "__getitems__" not in vars(task):
        task.__getitems__ = _getitems


def _getitems(self: Dataset, indices: list[int]) -> list[object]:
    return [self[index] for index in indices]


def _get_confirm_token(response: Any) -> str | None:
    """Google Drive's "download anyway" token (as in torchvision 0.8)."""
    for key, value in response.cookies.items():
        if key.startswith("download_warning"):
            return value
    return None


def _save_response_content(response: Any, destination: str, chunk_size: int = 32768) -> None:
    """Write the body of a streamed response to a file (as in torchvision 0.8)."""
    response.raw.decode_content = True
    with open(destination, "wb") as file:
        shutil.copyfileobj(response.raw, file, chunk_size)
