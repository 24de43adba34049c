"""What the benchmarks of speed share: settings of the field, random episodes of them, and a stopwatch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from imaml_lightning import Episode, Examples, Implicit, ProximalTerm
from imaml_lightning.inner import GradientDescent
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import Conv4
from imaml_lightning.problem import Curvature, GaussNewton

LR, STRENGTH, CG_STEPS = 0.05, 2.0, 5


@dataclass(frozen=True)
class Setting:
    """A benchmark of the field, with the paper's solvers."""

    name: str
    way: int
    shot: int
    inner_steps: int
    channels: int = 1
    size: int = 28
    filters: int = 64
    tasks: int = 4  # that a benchmark takes by default, so that it ends

    def network(self) -> Conv4:
        """The 4-layer network that the field uses."""
        return Conv4(self.way, self.channels, self.size, self.filters)

    def adaptation(self, curvature: Curvature | None = None) -> Implicit:
        """iMAML with exactly these numbers of steps."""
        descent, cg = GradientDescent(LR, self.inner_steps), ConjugateGradient(CG_STEPS, rtol=0.0)
        return Implicit(descent, cg, curvature or GaussNewton(), ProximalTerm(STRENGTH))

    def episode(self, tasks: int, query: int, device: str = "cpu") -> Episode:
        """Random images; ``query`` of a class are asked for."""

        def images(count: int) -> Examples:
            x = torch.rand(tasks, self.way * count, self.channels, self.size, self.size)
            return Examples(x.to(device), torch.arange(self.way).repeat(count).expand(tasks, -1).to(device))

        return Episode(images(self.shot), images(query))

    @property
    def forward(self) -> int:
        """Multiply-adds of the convolutions for one image."""
        sizes = [self.size // 2**block for block in range(4)]
        inputs = [self.channels, *[self.filters] * 3]
        return sum(9 * self.filters * before * size**2 for before, size in zip(inputs, sizes, strict=True))


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("5w1s", 5, 1, 16, tasks=16),
        Setting("5w5s", 5, 5, 16),
        Setting("20w1s", 20, 1, 25),
        Setting("20w5s", 20, 5, 25),
        Setting("mini5w1s", 5, 1, 16, channels=3, size=84, filters=32),
    )
}


def options(description: str, settings: list[str], repeats: int = 3) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=settings)
    parser.add_argument("--tasks", type=int, help="tasks of a meta-step; 16 of 5w1s and 4 of the others if not given")
    parser.add_argument("--query", type=int, default=5, help="query images a class")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser


def seconds(function: Callable[[], object]) -> float:
    """Of one call, all that it started on a GPU included."""
    _finish()
    began = time.perf_counter()
    function()
    _finish()
    return time.perf_counter() - began


def in_turn(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn so that other work on the machine meets all alike; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, function in contenders.items():
            times[name].append(seconds(function))
    return {name: median(values[1:]) for name, values in times.items()}


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
