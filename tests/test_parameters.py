"""FlatNetwork: one vector for the adapted parameters, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_learners import smooth_conv
from torch import nn

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.network import FlatNetwork

PATTERNS = [
    (["*"], ["conv.weight", "conv.bias", "head.weight", "head.bias"]),
    (["head.*"], ["head.weight", "head.bias"]),
    (["*.bias", "conv.weight"], ["conv.weight", "conv.bias", "head.bias"]),  # in the network's order, not the patterns'
]


@pytest.mark.parametrize(("adapt", "names"), PATTERNS)
def test_vector_and_back(adapt: list[str], names: list[str]) -> None:
    network = smooth_conv()
    flat, named = FlatNetwork(network, adapt), dict(network.named_parameters())
    assert flat.names == names
    assert sum(flat.sizes) == flat.vector().numel()
    for name, part in flat.named(flat.vector()).items():
        assert torch.equal(part, named[name])
    assert {id(p) for p in flat.shared()} == {id(p) for name, p in named.items() if name not in names}


@pytest.mark.parametrize("adapt", [adapt for adapt, _ in PATTERNS])
def test_call_is_the_network_with_these_values(adapt: list[str]) -> None:
    network = smooth_conv()
    flat, x = FlatNetwork(network, adapt), torch.rand(4, 1, 4, 4)
    assert torch.equal(flat(flat.vector(), x), network(x))
    vector, other = flat.vector() + 0.5, copy.deepcopy(network)
    with torch.no_grad():
        for name in flat.names:
            other.get_parameter(name).add_(0.5)
    torch.testing.assert_close(flat(vector, x), other(x))
    assert not torch.allclose(flat(vector, x), network(x)), "the network itself keeps its values"


def test_gradients_reach_the_parameters_through_the_vector() -> None:
    network = smooth_conv()
    flat = FlatNetwork(network, ["head.*"])
    weight = torch.arange(sum(flat.sizes), dtype=torch.float32)
    (flat.vector() @ weight).backward()
    assert torch.equal(network.head.weight.grad, weight[:6].view(3, 2))
    assert torch.equal(network.head.bias.grad, weight[6:])
    assert network.conv.weight.grad is None


def test_no_match_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"body\.\*.*use patterns of \['0\.weight', '0\.bias'\]"):
        FlatNetwork(nn.Sequential(nn.Linear(1, 1)), ["body.*"])
