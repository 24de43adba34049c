"""How many tasks are best solved together, measured on the device and network at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from imaml_lightning.episode import Examples
from imaml_lightning.problem.objective import InnerObjective

REPEATS = 3


def seconds_a_task(objective: Callable[[Examples], InnerObjective], support: Examples) -> dict[int, float]:
    """Seconds of one inner gradient, by the number of tasks solved together: 1, 2, 4, … and all of ``support``.

    The gradient is where an adaptation spends its time. Sizes that do not fit into a GPU's memory are left out.
    """
    tasks = len(support.x)
    sizes = sorted({*(2**k for k in range(tasks.bit_length())), tasks})
    found: dict[int, float] = {}
    for size in sizes:
        chunk = objective(Examples(support.x[:size], support.y[:size]))
        try:
            found[size] = median(_seconds(chunk) for _ in range(REPEATS + 1)) / size
        except torch.cuda.OutOfMemoryError:
            break
    return found


def _seconds(objective: InnerObjective) -> float:
    on_gpu = objective.support.x.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    objective.value_and_gradient(objective.start())
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began
