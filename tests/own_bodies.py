"""Bodies as people have them: from pictures [example, 3, 16, 16] to features, each in a way of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imaml_lightning import MetaLearner
from imaml_lightning.adaptation import Implicit
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import Backbone, OneHotSquaredError
from imaml_lightning.problem import ProximalTerm
from imaml_lightning.problem.curvature import Hessian


class Convolutions(nn.Sequential):
    """With running statistics, and a last layer that gives classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.fc = nn.Linear(24, 1000)


class Map(nn.Module):
    """A map of features [example, feature, height, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


class Rows(nn.Module):
    """An LSTM that reads a picture row by row: a tuple of all its states and the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(48, 7, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, (last, _) = self.rnn(x.permute(0, 2, 1, 3).flatten(2))
        return states, last[0]


class Transformer(nn.Module):
    """A vision transformer that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.blocks(self.patches(x).flatten(2).mT)
        return {"tokens": tokens, "pooled": tokens.mean(1)}


def head_only(network: Backbone) -> MetaLearner:
    """iMAML of the head, its inner problem solved exactly."""
    adaptation = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1, learn=True))
    return MetaLearner(network, adaptation, support_criterion=OneHotSquaredError(), adapt=["head.weight"])


def pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
