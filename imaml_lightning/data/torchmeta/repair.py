"""torchmeta 1.8.0, its last release, mended where newer torch and torchvision took something away.

Nothing that exists is ever replaced: every repair first looks whether the thing is there.
"""

from __future__ import annotations

import importlib
import shutil
from typing import Any

from torch.utils.data import Dataset, Subset


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
