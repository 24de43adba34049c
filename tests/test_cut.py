"""Features once: a network cut before its first adapted parameter is the same network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import images, implicit, smooth_conv
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation, FirstOrder, MAMLPlusPlus, Reptile, Unrolled
from imaml_lightning.models import VGG, Conv4, DenseNet, LearnedLoss, ResNet
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem.cut import Cut

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in (
        "no `val_dataloader`",
        "does not have many workers",
        "number of training batches",
        "will not run validation",
        "no gradient of (Reptile|Implicit) reaches",
    )
]


class OwnForward(nn.Module):
    """A network of a user's own: no chain, a head called by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
        self.gate = nn.Linear(16, 6)
        self.classify = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.tanh(self.embed(x)) * torch.sigmoid(self.gate(x.flatten(1))))


def deep() -> nn.Module:
    """Two smooth blocks, the second of which may be adapted with the head."""
    blocks = [nn.Sequential(nn.Conv2d(1 if i == 0 else 2, 2, 3, padding=1), nn.Softplus()) for i in range(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32, 3))


#: A network, what is adapted, and what of it is shared.
CUTS: dict[str, tuple[Callable[[], nn.Module], list[str], bool]] = {
    "head": (smooth_conv, ["head.*"], True),
    "head of a transductive body": (lambda: smooth_conv(norm=True), ["head.*"], True),
    "last block and head": (deep, ["1.*", "3.*"], True),
    "weight of the head": (deep, ["3.weight"], True),
    "head of a user's own": (OwnForward, ["classify.*"], True),
    "a middle layer": (deep, ["1.0.*"], True),
    "two parts of a user's own": (OwnForward, ["gate.*", "classify.*"], False),
    "everything": (deep, ["*"], False),
}

ADAPTATIONS: dict[str, Callable[[], Adaptation]] = {
    "implicit": lambda: implicit(lr=0.1, steps=3),
    "first order": lambda: FirstOrder(proximal=ProximalTerm(1.5)),
    "unrolled": lambda: Unrolled(SGD(0.1), steps=3, learned=[Learned("lr", "parameter")]),
    "checkpointed": lambda: Unrolled(SGD(0.1), steps=4, checkpoint=True, proximal=ProximalTerm(1.5, learn=True)),
    "MAML++": lambda: MAMLPlusPlus(SGD(0.1), steps=3, multi_step_until=9),
    "Reptile": lambda: Reptile(SGD(0.1), steps=3, batch=2),
}


def built(make: Callable[[], nn.Module], adapt: list[str], adaptation: Adaptation, **options: object) -> MetaLearner:
    torch.manual_seed(0)
    return MetaLearner(make(), adaptation, adapt=adapt, **options).double()


def meta_gradient(learner: MetaLearner, episode: Episode, chunk: int | None = None) -> dict[str, Tensor]:
    """By a real training step: what gradient descent of rate 1 takes from each parameter."""
    learner = copy.deepcopy(learner)
    learner.task_chunk, learner.optimizer = chunk or episode.tasks, lambda p: torch.optim.SGD(p, 1.0)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    trained(learner, episode)
    return {name: before[name] - p.detach() for name, p in learner.named_parameters()}


def trained(learner: MetaLearner, *episodes: Episode) -> None:
    """A meta-step on each episode."""
    trainer = Trainer(
        accelerator="cpu", max_steps=len(episodes), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, DataLoader(list(episodes), batch_size=None))


def assert_same_gradients(learner: MetaLearner, other: MetaLearner, episode: Episode, chunk: int | None = None) -> None:
    here, there = meta_gradient(learner, episode, chunk), meta_gradient(other, episode)
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-11)


def whole(learner: MetaLearner) -> MetaLearner:
    """The same learner, whose network stays whole."""
    learner = copy.deepcopy(learner)
    learner.cut = Cut(learner.flat, "to compare with")
    return learner


@pytest.mark.parametrize("name", CUTS)
def test_where_networks_are_cut(name: str) -> None:
    make, adapt, shared = CUTS[name]
    cut = built(make, adapt, implicit()).cut
    assert cut.whole != shared
    assert bool(cut.why_whole) == cut.whole


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("name", CUTS)
def test_meta_gradients_equal_those_of_the_whole_network(name: str, adaptation: str) -> None:
    make, adapt, _ = CUTS[name]
    learner = built(make, adapt, ADAPTATIONS[adaptation]())
    assert_same_gradients(learner, whole(learner), images())


@pytest.mark.parametrize("name", ["head", "last block and head", "head of a user's own"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_meta_gradients_do_not_depend_on_the_chunk(name: str, chunk: int) -> None:
    make, adapt, _ = CUTS[name]
    learner = built(make, adapt, implicit())
    assert_same_gradients(learner, whole(learner), images(), chunk)


def test_a_learned_loss_and_padding_are_as_in_the_whole_network() -> None:
    learner = built(smooth_conv, ["head.*"], implicit(), support_criterion=LearnedLoss(nn.CrossEntropyLoss()))
    for parameter in learner.support_criterion.parameters():
        nn.init.normal_(parameter, std=0.3)
    episode = images()
    y = episode.support.y.clone()
    y[0, -2:] = -100
    padded = Episode(Examples(episode.support.x, y), episode.query)
    assert_same_gradients(learner, whole(learner), padded)


@pytest.mark.parametrize("network", [VGG, ResNet, DenseNet])
def test_the_package_networks_are_cut_before_their_heads(network: type) -> None:
    learner = MetaLearner(network(filters=2) if network is not DenseNet else network(growth=2), adapt=["head.*"])
    assert learner.cut.adapted.network is learner.network.head
    x = torch.rand(2, 5, 1, 28, 28)
    phi = learner.flat.vector().expand(2, -1)
    torch.testing.assert_close(learner.cut.adapted.tasks(phi, *learner.cut.features(x)), learner.flat.tasks(phi, x))


class Edited(VGG):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(3))


def test_a_changed_forward_is_no_chain() -> None:
    torch.manual_seed(0)
    learner = MetaLearner(Edited(filters=2), adapt=["head.*"])
    x = torch.rand(2, 5, 1, 28, 28)
    phi = learner.flat.vector() + torch.randn(2, 1)
    torch.testing.assert_close(learner.cut.adapted.tasks(phi, *learner.cut.features(x)), learner.flat.tasks(phi, x))


def test_hooks_around_a_chain_are_called() -> None:
    learner = built(smooth_conv, ["head.*"], implicit())
    learner.network.register_forward_hook(lambda _, x, z: 2 * z)
    learner.cut = Cut(learner.flat)
    with pytest.warns(UserWarning, match="its output is not that of the network"):
        assert_same_gradients(learner, whole(learner), images())


#: What a person, or Lightning's sync_batchnorm, may do to a network after it was handed in.
EDITS: dict[str, Callable[[nn.Sequential], object]] = {
    "a layer of the shared part": lambda network: network[0].__setitem__(1, nn.Tanh()),
    "a block": lambda network: network.__setitem__(1, nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh()).double()),
    "the head": lambda network: network.__setitem__(3, nn.Linear(32, 3).double()),
    "a hook": lambda network: network.register_forward_hook(lambda _, x, z: 2 * z),
}


@pytest.mark.filterwarnings("ignore:every inner step evaluates the whole network")
@pytest.mark.parametrize("edit", EDITS)
def test_a_network_edited_after_it_was_cut_is_computed_as_it_is(edit: str) -> None:
    learner = built(deep, ["3.*"], implicit())
    x = images().query.x
    learner.cut.features(x)
    EDITS[edit](learner.network)
    (features,) = learner.cut.features(x)
    phi = learner.flat.vector().expand(len(x), -1)
    outputs = torch.stack([learner.network(task) for task in x])
    torch.testing.assert_close(learner.cut.adapted.tasks(phi, features), outputs)


def test_synchronised_batch_normalisation_is_what_the_shared_part_has() -> None:
    learner = MetaLearner(Conv4(filters=2, norm="running"), adapt=["head.*"])
    learner.network = nn.SyncBatchNorm.convert_sync_batchnorm(learner.network)
    learner.cut.features(torch.rand(1, 3, 1, 28, 28))
    kinds = {type(module) for module in learner.cut.module.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds


class Twice(OwnForward):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(-x)


class TiedThroughForward(OwnForward):
    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.tanh(self.embed(x)) * self.classify.weight.sum())


class Scaled(OwnForward):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("network", "why"),
    [(Twice, "called 2 times"), (TiedThroughForward, "used before it"), (Scaled, "not that of the network")],
)
def test_a_network_whose_head_is_not_its_end_stays_whole(network: type, why: str) -> None:
    learner = built(network, ["classify.*"], implicit())
    with pytest.warns(UserWarning, match=why):
        assert_same_gradients(learner, whole(learner), images())


def test_each_image_passes_the_shared_part_once() -> None:
    learner = built(smooth_conv, ["head.*"], implicit(), task_chunk=1)
    seen = []
    learner.network.conv.register_forward_hook(lambda _, x, z: seen.append(len(x[0])))
    episode = images()
    learner.checked = True  # which takes passes of its own
    learner.cut.features(episode.support.x, episode.query.x)  # the first call asks whether company matters
    learner.checked = True  # of what passes the network before training
    seen.clear()
    trained(learner, episode)
    assert sum(seen) == episode.support.x.shape[:2].numel() + episode.query.x.shape[:2].numel()


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("shot", [1, 2])
def test_company_matters_also_where_the_images_of_both_sets_are_the_same(tasks: int, shot: int) -> None:
    x = torch.randn(tasks, 2 * shot, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).double()
    cut = MetaLearner(network, adapt=["1.*"]).cut
    for found in cut.features(x, x):
        torch.testing.assert_close(found, torch.stack([network[0](task) for task in x]))
