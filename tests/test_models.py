"""The networks: shapes, normalisation, starting values, complaints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imaml_lightning.errors import UsageError
from imaml_lightning.models import MLP, Conv4

# 28 → 14 → 7 → 3 → 1 by pooling, which drops what is odd; 28 → 14 → 7 → 4 → 2 by strides, which keeps it.
FEATURES = [("max_pool", 28, 1), ("stride", 28, 4), ("max_pool", 84, 25), ("stride", 84, 36)]


@pytest.mark.parametrize(("downsample", "size", "places"), FEATURES)
def test_conv4_shapes(downsample: str, size: int, places: int) -> None:
    network = Conv4(way=7, channels=3, size=size, filters=6, downsample=downsample)
    assert network(torch.rand(4, 3, size, size)).shape == (4, 7)
    assert network.head.in_features == 6 * places
    assert [tuple(block.conv.weight.shape) for block in network.body] == [(6, 3, 3, 3)] + [(6, 6, 3, 3)] * 3


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)])
def test_conv4_norm(norm: str, kind: type[nn.Module] | None) -> None:
    torch.manual_seed(0)
    network = Conv4(filters=12, downsample="stride", norm=norm, zero_head=False)
    kinds = [type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert kinds == ([kind] * 4 if kind else [])
    # A forward pass may change no buffer, and only batch statistics tie one image to the others.
    assert not list(network.buffers())
    x = torch.rand(6, 1, 28, 28)
    alone = torch.allclose(network(x)[:2], network(x[:2]), atol=1e-5)
    assert alone == (norm != "batch")


def test_conv4_starts_symmetric_in_the_classes() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(Conv4(filters=4)(x), torch.zeros(2, 5))
    assert Conv4(filters=4, zero_head=False)(x).std() > 0
    assert all(not block.conv.bias.any() for block in Conv4(filters=4).body)


def test_mlp_layers() -> None:
    network = MLP(2, 3, hidden=(4, 5), activation=nn.Tanh)
    kinds = [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]  # none after the last: outputs are not bounded
    assert [type(layer) for layer in network.layers] == kinds
    assert [tuple(p.shape) for p in network.parameters()] == [(4, 2), (4,), (5, 4), (5,), (3, 5), (3,)]
    assert network(torch.rand(6, 2)).shape == (6, 3)
    assert [type(layer) for layer in MLP(hidden=()).layers] == [nn.Linear]


@pytest.mark.parametrize("options", [{"way": 0}, {"channels": 0}, {"size": 0}, {"filters": 0}])
def test_conv4_refuses(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Conv4(**options)


@pytest.mark.parametrize("size", [1, 8, 15])
def test_conv4_refuses_images_that_pooling_would_wipe_out(size: int) -> None:
    with pytest.raises(UsageError, match="size"):
        Conv4(size=size, filters=4)


@pytest.mark.parametrize("options", [{"features": 0}, {"outputs": 0}, {"hidden": (4, 0)}])
def test_mlp_refuses(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="width"):
        MLP(**options)
