"""FlatNetwork: one vector for the adapted parameters, and back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from tiny_learners import gradients, smooth_conv
from torch import nn

from imaml_lightning import Episode, Examples, MetaLearner
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


class Tied(nn.Module):
    """A head whose weight is the encoder's, as in language models."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3, bias=bias)
        self.head.weight = self.body.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).tanh())


def used_twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2))


TIED = [
    (Tied, ["head.*"], ["body.weight", "head.bias"]),
    (Tied, ["body.*"], ["body.weight", "body.bias"]),
    (lambda: Tied(bias=False), ["head.*"], ["body.weight"]),
    (used_twice, ["2.*"], ["0.weight", "0.bias"]),
]


@pytest.mark.parametrize(("make", "adapt", "names"), TIED)
def test_a_parameter_has_all_its_names(make: Callable[[], nn.Module], adapt: list[str], names: list[str]) -> None:
    network = make()
    flat, x = FlatNetwork(network, adapt), torch.rand(2, 4, 3)
    assert flat.names == names
    assert len(flat.shared()) == len(list(network.parameters())) - len(names)
    phi = flat.vector().detach() + torch.tensor([[0.5], [0.25]])
    others = []
    for shift in (0.5, 0.25):  # each parameter itself, wherever it is used
        other = copy.deepcopy(network)
        with torch.no_grad():
            for name in names:
                other.get_parameter(name).add_(shift)
        others.append(other)
    expected = torch.stack([other(part) for other, part in zip(others, x, strict=True)])
    torch.testing.assert_close(flat.tasks(phi, x), expected)


def half_frozen() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    network[0].requires_grad_(False)
    network[2].bias.requires_grad_(False)
    return network


def test_frozen_is_neither_adapted_nor_meta_learned() -> None:
    torch.manual_seed(0)
    network = half_frozen()
    built = MetaLearner(network)
    assert built.flat.names == ["2.weight", "4.weight", "4.bias"]
    episode = Examples(torch.randn(2, 6, 2).double(), torch.arange(3).repeat(2, 2))
    found = gradients(built, Episode(episode, episode))
    for name in ("0.weight", "0.bias", "2.bias"):
        assert not found[f"network.{name}"].any()

    class WithConstants(nn.Module):
        """The same, in which the frozen tensors are no parameters at all."""

        def __init__(self) -> None:
            super().__init__()
            self.two, self.four = nn.Parameter(network[2].weight.detach()), copy.deepcopy(network[4])
            self.constants = [network[0].weight.detach(), network[0].bias.detach(), network[2].bias.detach()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight, bias, second = self.constants
            hidden = nn.functional.linear(nn.functional.linear(x, weight, bias).tanh(), self.two, second)
            return self.four(hidden.tanh())

    expected = gradients(MetaLearner(WithConstants()), Episode(episode, episode))
    for ours, theirs in {"2.weight": "two", "4.weight": "four.weight", "4.bias": "four.bias"}.items():
        torch.testing.assert_close(found[f"network.{ours}"], expected[f"network.{theirs}"])


def test_frozen_is_not_adapted_whoever_names_it() -> None:
    assert FlatNetwork(half_frozen(), ["2.*"]).names == ["2.weight"]
    with pytest.raises(UsageError, match=r"adapt=\['0.\*'\] are frozen"):
        FlatNetwork(half_frozen(), ["0.*"])


def test_a_tied_parameter_is_frozen_under_all_its_names() -> None:
    network = Tied()
    network.body.weight.requires_grad_(False)
    assert FlatNetwork(network).names == ["body.bias", "head.bias"]


def test_freezing_some_of_the_adapted_later_is_refused_and_all_of_them_is_not() -> None:
    network = smooth_conv()
    flat = FlatNetwork(network)
    network.requires_grad_(False)  # as LightningModule.freeze does, to predict
    assert flat.vector().shape == (sum(flat.sizes),)
    network.conv.requires_grad_(True)
    with pytest.raises(UsageError, match=r"head.weight was frozen .*: freeze before"):
        flat.vector()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: nn.LazyLinear(2), "no shape yet"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "complex64"),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()), "one type"),
    ],
)
def test_what_cannot_stand_in_one_vector_is_refused(network: Callable[[], nn.Module], words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: lazy modules are new
        built = network()
    with pytest.raises(UsageError, match=words):
        FlatNetwork(built)
