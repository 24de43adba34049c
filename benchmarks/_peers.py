"""Other libraries' few-shot learners, as their own examples train them: the same network, steps, rates and sizes.

Sources are files of their repositories on GitHub; what is there for another data set or more shots is 1-shot Omniglot here, and what
is done there beside training (validation tasks, printing) is left out. Peers are imported when they are built.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR

from imaml_lightning import Examples

Task = tuple[Examples, Examples]  # support and query, ``[example, *feature]``


def find_learn2learn() -> bool:
    """Whether it is there; if so, it can be imported afterwards without what its packages import when they start."""
    names = ("learn2learn", "learn2learn.algorithms", "learn2learn.vision", "learn2learn.vision.models")
    if names[0] not in sys.modules:
        if not importlib.util.find_spec(names[0]):
            return False
        for name in names:
            package = ModuleType(name)
            package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
            sys.modules[name] = package
    return True


class Peer(ABC):
    """Another library's learner."""

    package: str  # what has to be installed
    protocol = "transductive"  # where a query batch is normalised by its own statistics
    any_way = False  # whether one training serves any number of ways
    way: int | None = None  # of a training episode; None is that of the race
    query: int  # of a class in a training episode
    tasks: int  # of a meta-step
    outer: Optimizer
    scheduler: LRScheduler | None = None  # stepped once a meta-step

    @abstractmethod
    def __init__(self, way: int) -> None: ...

    @abstractmethod
    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        """Logits on the query set after adaptation to the support set; differentiable in training."""

    def meta_step(self, tasks: Sequence[Task]) -> None:
        """One step of the outer optimizer on the mean over tasks."""
        self.outer.zero_grad()
        for support, query in tasks:
            (cross_entropy(self.answers(support, query, True), query.y) / len(tasks)).backward()
        self.outer.step()
        if self.scheduler:
            self.scheduler.step()


def omniglot_cnn(way: int) -> nn.Module:
    """learn2learn's own network for Omniglot: four strided convolutions, and the mean over places."""
    find_learn2learn()
    importlib.import_module("learn2learn.nn")  # which the package, as it is found, does not import by itself
    return importlib.import_module("learn2learn.vision.models.cnn4").OmniglotCNN(way)


def learn2learn_maml(network: nn.Module, lr: float) -> nn.Module:
    return importlib.import_module("learn2learn.algorithms.maml").MAML(network, lr=lr)


class Learn2LearnMAML(Peer):
    """learnables/learn2learn, examples/vision/maml_omniglot.py: 1 step of 0.5, Adam of 0.003, 32 tasks, as many queries as
    shots; with OmniglotCNN, which examples/vision/README.md says to take (99.1 % there, 88.9 % fully connected).
    """

    package, query, tasks = "learn2learn", 1, 32

    def __init__(self, way: int) -> None:
        self.maml = learn2learn_maml(omniglot_cnn(way), lr=0.5)
        self.outer = Adam(self.maml.parameters(), 0.003)

    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        learner = self.maml.clone()
        learner.adapt(cross_entropy(learner(support.x), support.y), first_order=not training)
        return learner(query.x)


class Learn2LearnANIL(Peer):
    """learnables/learn2learn, examples/vision/anil_fc100.py: 5 steps of 0.1 (which LightningANIL shows for Omniglot too), Adam of
    0.001, 32 tasks, as many queries as shots, features of support and query normalised together; those of OmniglotCNN.
    """

    package, query, tasks = "learn2learn", 1, 32

    def __init__(self, way: int) -> None:
        network = omniglot_cnn(way)
        self.features, self.head = network.features, learn2learn_maml(nn.Linear(network.hidden_size, way), lr=0.1)
        self.outer = Adam([*self.features.parameters(), *self.head.parameters()], 0.001)

    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        features = self.features(torch.cat([support.x, query.x]))
        learner = self.head.clone()
        for _ in range(5):
            loss = cross_entropy(learner(features[: len(support.x)]), support.y)
            learner.adapt(loss, first_order=not training)
        return learner(features[len(support.x) :])


def convolutions(blocks: int, padding: int, inplace: bool, **norm: float) -> list[nn.Module]:
    """Convolution, batch norm, ReLU and pooling, ``blocks`` times, of 64 filters."""
    layers: list[nn.Module] = []
    for channels in (1, *[64] * (blocks - 1)):
        layers += [nn.Conv2d(channels, 64, 3, padding=padding), nn.BatchNorm2d(64, **norm)]
        layers += [nn.ReLU(inplace), nn.MaxPool2d(2)]
    return [*layers, nn.Flatten()]


class HigherMAML(Peer):
    """facebookresearch/higher, examples/maml-omniglot.py: 5 steps of 0.1, Adam of 0.001, 32 tasks of 15 queries a class;
    its network of three convolutions without padding.
    """

    package, query, tasks = "higher", 15, 32

    def __init__(self, way: int) -> None:
        self.network = nn.Sequential(*convolutions(3, 0, inplace=True, momentum=1.0), nn.Linear(64, way))
        self.outer = Adam(self.network.parameters(), 1e-3)
        self.inner = SGD(self.network.parameters(), lr=0.1)

    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        import higher

        options = {"copy_initial_weights": False} if training else {"track_higher_grads": False}
        with higher.innerloop_ctx(self.network, self.inner, **options) as (network, stepper):
            for _ in range(5):
                stepper.step(cross_entropy(network(support.x), support.y))
            return network(query.x)


class TorchOptIMAML(Peer):
    """metaopt/torchopt, examples/iMAML/imaml_omniglot.py: λ = 2, 5 steps of 0.1, 5 of conjugate gradients on the normal
    equations, Adam of 0.001, 16 tasks of 5 queries a class; higher's network.
    """

    package, query, tasks = "torchopt", 5, 16

    def __init__(self, way: int) -> None:
        import torchopt

        layers = convolutions(3, 0, inplace=False, momentum=1.0, track_running_stats=False)
        self.network = nn.Sequential(*layers, nn.Linear(64, way))
        self.inner = inner_network(self.network)
        self.outer = torchopt.Adam(self.network.parameters(), lr=1e-3)

    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        self.inner.reset()
        with torch.set_grad_enabled(training):
            self.inner.solve(support.x, support.y)
        return self.inner(query.x)


def inner_network(network: nn.Module) -> nn.Module:
    """TorchOpt's implicit module for ``network``."""
    import torchopt
    from torchopt.diff.implicit import ImplicitMetaGradientModule

    solver = torchopt.linear_solve.solve_normal_cg(maxiter=5, atol=0)

    class Inner(ImplicitMetaGradientModule, linear_solve=solver):
        def __init__(self, meta_net: nn.Module) -> None:  # what it is given has the meta-parameters
            super().__init__()
            self.meta_net = meta_net
            self.net = torchopt.module_clone(meta_net, by="deepcopy", detach_buffers=True)

        def reset(self) -> None:
            with torch.no_grad():
                for p, theta in zip(self.parameters(), self.meta_parameters(), strict=True):
                    p.data.copy_(theta.data)
                    p.detach_().requires_grad_()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            pairs = zip(self.parameters(), self.meta_parameters(), strict=True)
            return cross_entropy(self(x), y) + sum((p - theta).square().sum() for p, theta in pairs)

        def solve(self, x: Tensor, y: Tensor) -> nn.Module:
            params = tuple(self.parameters())
            optimizer = torchopt.SGD(params, lr=0.1)
            with torch.enable_grad():
                for _ in range(5):
                    optimizer.zero_grad()
                    self.objective(x, y).backward(inputs=params)
                    optimizer.step()
            return self

    return Inner(network)


class EasyFSL(Peer):
    """sicara/easy-few-shot-learning, notebooks/episodic_training.ipynb: a prototypical network, 5 ways, 10 queries, SGD of
    0.01 with momentum 0.9 and decay 5e-4, divided by 10 after 120 and 160 epochs of 500 tasks. The library has residual
    networks alone; here it has Conv4 of 64 filters, which the method's paper takes for Omniglot.
    """

    package, protocol, any_way = "easyfsl", "inductive", True
    way, query, tasks = 5, 10, 1

    def __init__(self, way: int) -> None:
        from easyfsl.methods import PrototypicalNetworks

        self.classifier = PrototypicalNetworks(nn.Sequential(*convolutions(4, 1, inplace=False)))
        self.optimise()

    def optimise(self) -> None:
        self.outer = SGD(self.classifier.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
        self.scheduler = MultiStepLR(self.outer, [120 * 500, 160 * 500], 0.1)

    def answers(self, support: Examples, query: Examples, training: bool) -> Tensor:
        self.classifier.train(training)
        self.classifier.process_support_set(support.x, support.y)
        return self.classifier(query.x)


class EasyFSLAsSnell(EasyFSL):
    """easyfsl's network with the settings that the method's authors have for Omniglot, jakesnell/prototypical-networks,
    scripts/train/few_shot/run_train.py: 60 ways, 5 queries, Adam of 0.001, halved every 2,000 episodes.
    """

    way, query = 60, 5

    def optimise(self) -> None:
        self.outer = Adam(self.classifier.parameters(), 1e-3)
        self.scheduler = StepLR(self.outer, 2000, 0.5)


PEERS: dict[str, type[Peer]] = {
    "learn2learn-maml": Learn2LearnMAML,
    "learn2learn-anil": Learn2LearnANIL,
    "higher-maml": HigherMAML,
    "torchopt-imaml": TorchOptIMAML,
    "easyfsl": EasyFSL,
    "easyfsl-60-way": EasyFSLAsSnell,
}
