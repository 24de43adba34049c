"""The networks: shapes, normalisation, starting values, complaints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imaml_lightning.adaptation import Unrolled
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.models import MLP, VGG, Conv4, DenseNet, LearnedLoss, ResNet
from imaml_lightning.optimizers import SGD

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


NETWORKS = {
    "vgg": (lambda **o: VGG(filters=4, **o), 4),
    "vgg_deep": (lambda **o: VGG(filters=4, stages=2, per_stage=2, **o), 4),
    "resnet4": (lambda **o: ResNet(depth=4, filters=4, **o), 4),
    "resnet8": (lambda **o: ResNet(depth=8, filters=4, **o), 8),
    "resnet12": (lambda **o: ResNet(depth=12, filters=4, **o), 12),
    "densenet8": (lambda **o: DenseNet(growth=4, **o), 7),  # and the head
}


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name: str, norm: str) -> None:
    torch.manual_seed(0)
    build, depth = NETWORKS[name]
    network = build(way=3, channels=2, size=28, norm=norm, zero_head=False)
    x = torch.rand(6, 2, 28, 28)
    assert network(x).shape == (6, 3)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth
    assert not list(network.buffers())  # nothing that a forward pass changes
    alone = torch.allclose(network(x)[:2], network(x[:2]), atol=1e-4)
    assert alone == (norm != "batch")
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"body", "head"}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_are_adapted_through_their_steps(name: str) -> None:
    """One task and several at once give the same meta-gradients, all finite, to every parameter."""
    torch.manual_seed(0)
    network = NETWORKS[name][0](way=2, size=16, zero_head=False).double()
    learner = MetaLearner(network, Unrolled(SGD(0.05), steps=2)).double()
    x, y = torch.rand(2, 4, 1, 16, 16, dtype=torch.float64), torch.tensor([[0, 0, 1, 1]] * 2)
    found = []
    for size in (1, 2):
        learner.zero_grad()
        for chunk in Episode(Examples(x, y), Examples(x.flip(1), y)).chunks(size):
            learner.judge(learner.adapted(chunk.support).phi, chunk.query)["loss"].sum().backward()
        found.append({name: p.grad for name, p in learner.network.named_parameters()})
    for parameter, slope in found[0].items():
        assert slope.isfinite().all()
        # A bias before batch normalisation has no effect, and its slope is rounding.
        torch.testing.assert_close(found[1][parameter], slope, rtol=1e-6, atol=1e-9)


def test_published_networks_start_symmetric_in_the_classes() -> None:
    for build, _ in NETWORKS.values():
        assert torch.equal(build(way=3)(torch.rand(2, 1, 28, 28)), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: VGG(way=0),
        lambda: VGG(size=15),
        lambda: VGG(stages=0),
        lambda: ResNet(filters=0),
        lambda: ResNet(size=8),
        lambda: DenseNet(growth=0),
        lambda: DenseNet(blocks=()),
    ],
)
def test_published_networks_refuse(build) -> None:
    with pytest.raises(UsageError, match=r"way|stages|filters|growth|blocks"):
        build()


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_learned_loss_starts_as_its_base_and_knows_no_class_by_number(kind: str) -> None:
    torch.manual_seed(0)
    z, classes = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    base, y = (nn.CrossEntropyLoss(), classes) if kind == "classes" else (nn.MSELoss(), torch.randn(4, 3))
    loss = LearnedLoss(base, hidden=5)
    assert torch.equal(loss(z, y), base(z, y))
    nn.init.normal_(loss.net[-1].weight)
    assert not torch.allclose(loss(z, y), base(z, y))
    order = torch.tensor([2, 0, 1])
    turned = order.argsort()[y] if kind == "classes" else y[:, order]
    torch.testing.assert_close(loss(z[:, order], turned), loss(z, y))
    if kind == "classes":  # padding counts for nothing
        padded = torch.cat([z, torch.randn(2, 3)]), torch.cat([y, torch.tensor([-100, -100])])
        torch.testing.assert_close(loss(*padded), loss(z, y))
    with pytest.raises(UsageError, match="hidden"):
        LearnedLoss(base, hidden=0)
