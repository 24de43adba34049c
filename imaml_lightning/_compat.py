"""The import of torchvision, repaired where its version and torch's do not match.

Nothing that exists is ever replaced: the repair first looks whether the thing is there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Operators whose schemas torchvision's Python half expects its compiled half to have declared.
_TORCHVISION_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

#: A torch.library.Library withdraws its declarations when it is collected, so it is kept here.
_declared: list[Any] = []


def repair_torchvision() -> None:
    """Make ``import torchvision``, whenever it comes, work beside a torch of another build.

    PyPI's torchvision beside a CPU-only torch fails with "operator torchvision::nms does not exist",
    and then so do lightning and torchmetrics, which look for it: call this before importing them.
    The missing schemas are declared without an implementation, so image transforms work and box
    operators still say that they are unavailable. A missing torchvision is left missing.
    """
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Repairing) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Repairing())


class _Repairing(MetaPathFinder):
    """Finds torchvision as everybody does, and runs it a second time if its operators were missing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_repaired(module: ModuleType) -> None:
                try:
                    run(module)
                except RuntimeError as error:
                    if "operator torchvision::" not in str(error):
                        raise
                    _declare_missing_operators()
                    # The failed run leaves submodules behind that were run against the missing operators.
                    for left in [n for n in sys.modules if n.startswith("torchvision.")]:
                        del sys.modules[left]
                        vars(module).pop(left.partition(".")[2], None)  # or ``from torchvision import`` finds it still
                    run(module)

            spec.loader.exec_module = run_repaired  # type: ignore[method-assign]
        return spec


def _declare_missing_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _TORCHVISION_OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
