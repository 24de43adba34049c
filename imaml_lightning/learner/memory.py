"""Peak memory of this process."""

from __future__ import annotations

import sys
from typing import Any

import torch

resource: Any
try:
    import resource
except ImportError:  # Windows has none
    resource = None


def peak_memory(device: torch.device) -> float | None:
    """In MB: on the device for CUDA, resident otherwise; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    # Linux counts in KB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
