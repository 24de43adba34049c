"""Regression of random functions of one variable: sine waves, waves or lines, and harmonics."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from imaml_lightning.data.base import EpisodeSource, Split
from imaml_lightning.episode import Episode, Examples


class RandomFunctions(EpisodeSource):
    """Tasks y = f(x) with a random f. A subclass draws f and its points.

    ``shot`` and ``query`` count points of a task; ``way`` is ignored. All splits share the distribution,
    which is continuous, so that no task comes twice. Nothing lies on disk.
    """

    task: Literal["classification", "regression"] = "regression"
    shape = (1,)

    @abstractmethod
    def draw(self, rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
        """A function's points x and values y, each ``[point]``."""

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        drawn = np.array([self.draw(rng, shot + query) for rng in rngs], np.float32)
        x, y = torch.from_numpy(drawn).unsqueeze(-1).unbind(1)
        return Episode(Examples(x[:, :shot], y[:, :shot]), Examples(x[:, shot:], y[:, shot:]))


class Sinusoid(RandomFunctions):
    """y = a·sin(x − φ) with a from U[0.1, 5], φ from U[0, π], x from U[−5, 5]; φ in radians.

    Source: Finn, Abbeel, Levine (2017), section 5.1.
    """

    def draw(self, rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, math.pi)
        x = rng.uniform(-5.0, 5.0, points)
        return x, amplitude * np.sin(x - phase)


class SinusoidAndLine(RandomFunctions):
    """Half of the tasks are those of Sinusoid, half are lines y = a x + b with a and b from U[−3, 3]; x from U[−5, 5].

    Source: Finn, Xu, Levine, "Probabilistic model-agnostic meta-learning" (2018); torchmeta's
    ``SinusoidAndLine``, without noise as there by default.
    """

    def draw(self, rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
        if rng.random() < 0.5:
            return Sinusoid().draw(rng, points)
        slope, intercept = rng.uniform(-3.0, 3.0, 2)
        x = rng.uniform(-5.0, 5.0, points)
        return x, slope * x + intercept


class Harmonic(RandomFunctions):
    """y = a₁ sin(ω x + b₁) + a₂ sin(2 ω x + b₂), with a ~ N(0, 1), b from U[0, 2π], ω from U[5, 7], and points
    x ~ N(μ, 1) around a centre μ from U[−4, 4]; b in radians.

    Source: Lacoste et al., "Uncertainty in multitask transfer learning" (2018); torchmeta's ``Harmonic``,
    without noise as there by default.
    """

    def draw(self, rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
        centre, frequency = rng.uniform(-4.0, 4.0), rng.uniform(5.0, 7.0)
        (b1, b2), (a1, a2) = rng.uniform(0.0, 2 * math.pi, 2), rng.standard_normal(2)
        x = centre + rng.standard_normal(points)
        return x, a1 * np.sin(frequency * x + b1) + a2 * np.sin(2 * frequency * x + b2)
