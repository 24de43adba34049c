"""Sinusoid: regression of random sine waves (Finn, Abbeel, Levine, ICML 2017, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch

from imaml_lightning.data.base import EpisodeSource, Split
from imaml_lightning.episode import Episode, Examples


class Sinusoid(EpisodeSource):
    """Tasks y = a·sin(x − φ) with a from U[0.1, 5], φ from U[0, π], x from U[−5, 5]; φ in radians.

    ``shot`` and ``query`` count points of a task; ``way`` is ignored. All splits share the distribution,
    which is continuous, so that no task comes twice. Nothing lies on disk.
    """

    task: ClassVar[Literal["classification", "regression"]] = "regression"
    shape = (1,)

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        x = np.empty((len(rngs), shot + query, 1))
        amplitude, phase = np.empty((2, len(rngs), 1, 1))
        for task, rng in enumerate(rngs):
            amplitude[task] = rng.uniform(0.1, 5.0)
            phase[task] = rng.uniform(0.0, math.pi)
            x[task] = rng.uniform(-5.0, 5.0, x.shape[1:])
        y = amplitude * np.sin(x - phase)
        inputs, targets = (torch.from_numpy(a.astype(np.float32)) for a in (x, y))
        return Episode(
            Examples(inputs[:, :shot], targets[:, :shot]),
            Examples(inputs[:, shot:], targets[:, shot:]),
        )
