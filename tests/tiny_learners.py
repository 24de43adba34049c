"""Small smooth learners and episodes in float64 for the tests of gradients."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from oracles import RAW, PlainBatchNorm, Problem
from torch import Tensor, nn

from imaml_lightning.adaptation import Adaptation, Implicit
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.problem.curvature import Curvature, Hessian
from imaml_lightning.problem.proximal import ProximalTerm


class Temperature(nn.Module):
    """A criterion with a parameter of its own: cross-entropy of the logits divided by a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(0.3))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits * self.log_rate.exp(), target)


def smooth_conv(norm: bool = False) -> nn.Module:
    """The smooth twin of Conv4 in small: one block for 4 x 4 images, Softplus for ReLU, average for maximum."""
    layers = [
        ("conv", nn.Conv2d(1, 2, 3, padding=1, bias=not norm)),
        ("soft", nn.Softplus()),
        ("pool", nn.AvgPool2d(4)),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(2, 3)),
    ]
    if norm:
        layers.insert(1, ("norm", nn.BatchNorm2d(2, track_running_stats=False)))
    return nn.Sequential(OrderedDict(layers))


def smooth_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 1))


def images(tasks: int = 3, seed: int = 0) -> Episode:
    """3-way episodes of random 4 x 4 images, 2 shots and 3 queries a class."""
    g = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Examples:
        x = torch.randn(tasks, 3 * count, 1, 4, 4, generator=g, dtype=torch.float64)
        return Examples(x, torch.arange(3).repeat(tasks, count))

    return Episode(draw(2), draw(3))


def points(tasks: int = 3, features: int = 2, seed: int = 0) -> Episode:
    """Regression episodes of random inputs and targets, 6 in the support and 9 in the query set."""
    g = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Examples:
        x = torch.randn(tasks, count, features, generator=g, dtype=torch.float64)
        return Examples(x, torch.randn(tasks, count, 1, generator=g, dtype=torch.float64))

    return Episode(draw(6), draw(9))


def implicit(
    curvature: Curvature | None = None, strength: float = 1.5, per: str = "network", lr: float = 0.25, steps: int = 200
) -> Implicit:
    """Implicit adaptation with λ learned and both solves carried to rounding."""
    linear = ConjugateGradient(max_steps=300, rtol=1e-13)
    return Implicit(
        GradientDescent(lr=lr, max_steps=steps), linear, curvature or Hessian(), ProximalTerm(strength, per, learn=True)
    )


def learner(
    network: nn.Module, adaptation: Adaptation, criterion: nn.Module | None = None, adapt: Sequence[str] = ("*",)
) -> MetaLearner:
    """A float64 learner with random parameters, and λ random about its value where there are several."""
    built = MetaLearner(network, adaptation, criterion, adapt=adapt).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
        raw = built.adaptation.proximal.raw
        raw.add_(0.3 * torch.rand(raw.shape, generator=g, dtype=torch.float64))
    return built


def gradients(built: MetaLearner, episode: Episode, chunk: int | None = None) -> dict[str, Tensor]:
    """The product's meta-gradient by parameter name, 0 where it gives none."""
    built.zero_grad()
    for part in episode.chunks(chunk):
        figures = built.judge(built.adapted(part.support).phi, part.query)
        (figures["loss"].sum() / episode.tasks).backward()
    named = dict(built.named_parameters())
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def problems(built: MetaLearner, episode: Episode, adapted: Sequence[str] | None = None) -> list[Problem]:
    """The oracle's view of every task; ``adapted`` names the adapted parameters, all for None."""
    network = copy.deepcopy(built.network)
    if hasattr(network, "norm"):
        network.norm = PlainBatchNorm(2, track_running_stats=False)  # its values are given with every call
    names = [name for name, _ in built.network.named_parameters()] if adapted is None else list(adapted)
    (x, y), (xq, yq) = episode
    return [Problem(network, built.criterion, names, (x[i], y[i]), (xq[i], yq[i])) for i in range(episode.tasks)]


def assert_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Each tensor's relative error in norm is at most ``rtol``."""
    assert actual.keys() == expected.keys()
    assert RAW in actual
    for name, wanted in expected.items():
        error = (actual[name] - wanted).norm() / wanted.norm()
        assert error <= rtol, f"{name}: relative error {error:.1e}"
