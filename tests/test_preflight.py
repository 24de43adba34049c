"""Before it trains, a learner says what its network cannot do, and the remedy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from imaml_lightning import Episode, Examples, FirstOrder, Implicit, MetaLearner, Unrolled
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.preflight import preflight
from imaml_lightning.models import MLP, Conv4, ResNet
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import FiniteDifference, Hessian

TASKS, EXAMPLES, FEATURES, WAY = 3, 6, 4, 3


def episode(x: Tensor | None = None) -> Episode:
    x = torch.randn(TASKS, EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(0)) if x is None else x
    part = Examples(x, torch.arange(WAY).repeat(TASKS, 2))
    return Episode(part, part)


def exact() -> Implicit:
    return Implicit(GradientDescent(lr=0.1, max_steps=3), curvature=Hessian())


def by_differences() -> Implicit:
    return Implicit(GradientDescent(lr=0.1, max_steps=3), curvature=FiniteDifference())


class Body(nn.Module):
    """A network of one's own; subclasses say what it does with its hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, WAY)
        self.kept = [self.first.weight]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(self.first(x)))

    def middle(self, hidden: Tensor) -> Tensor:
        return hidden.tanh()


class ReturnsPair(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class ReturnsDict(Body):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class Averages(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).mean()


class Guesses(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).argmax(-1)


class ChangesInputs(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.mul_(0.5))


class ChangesParameters(Body):
    def middle(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.weight.mul_(0.9)
        return hidden.tanh()


class Counts(Body):
    def middle(self, hidden: Tensor) -> Tensor:
        self.calls.add_(1)
        return hidden.tanh() / self.calls


class KeepsParameters(Body):
    def middle(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.kept[0]) @ self.kept[0].T


class WithoutSecondDerivative(Body):
    def middle(self, hidden: Tensor) -> Tensor:
        return torch.cdist(hidden, torch.eye(5).to(hidden))


class _WrongSine(torch.autograd.Function):
    """Its derivative is right, the derivative of that is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.cosine = x.detach().cos()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.cosine


class WrongSecondDerivative(Body):
    def middle(self, hidden: Tensor) -> Tensor:
        return _WrongSine.apply(hidden)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 5), nn.Linear(5, WAY)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(FEATURES, 5)), nn.Tanh(), nn.Linear(5, WAY))


REFUSED = [
    (ReturnsPair, Implicit, "ReturnsPair returns a tuple: wrap it in a module"),
    (ReturnsDict, Implicit, "ReturnsDict returns a dict: wrap it in a module"),
    (Averages, Implicit, r"returns torch.float32 of shape \(\) for 6 examples: it must return floating point numbers"),
    (Guesses, Implicit, "returns torch.int64 of shape"),
    (lambda: nn.Linear(7, WAY), Implicit, r"Linear cannot take inputs of shape \(6, 4\): mat1 and mat2"),
    (Words, Implicit, r"Words takes whole numbers and gets torch.float32 .*: begin its forward with x = x.long\(\)"),
    (ChangesInputs, Implicit, "ChangesInputs changes its inputs in place"),
    (ChangesParameters, FirstOrder, "ChangesParameters changes its parameters in place"),
    (Counts, Implicit, "calls changes whenever Counts is evaluated"),
    (spectral, Implicit, "_u changes whenever Sequential is evaluated.*spectral_norm"),
    (KeepsParameters, Implicit, "KeepsParameters keeps its parameters in other places"),
    (WithoutSecondDerivative, Implicit, "has no second derivative .*_cdist_backward.*FiniteDifference"),
    (WithoutSecondDerivative, exact, "has no second derivative .*_cdist_backward.*FiniteDifference"),
    (WithoutSecondDerivative, lambda: Unrolled(SGD(lr=0.1), steps=2), "has no second derivative"),
    (WrongSecondDerivative, exact, "WrongSecondDerivative has a wrong second derivative"),
    (WrongSecondDerivative, lambda: Unrolled(SGD(lr=0.1), steps=2), "has a wrong second derivative"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*is evaluated one task at a time", "ignore:every inner step evaluates")


@pytest.mark.parametrize(("network", "adaptation", "words"), REFUSED)
def test_what_a_network_cannot_do_is_said(
    network: Callable[[], nn.Module], adaptation: Callable[[], Any], words: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=words):
        preflight(MetaLearner(network(), adaptation()), episode())


def test_second_derivatives_to_what_is_not_adapted_are_needed_too() -> None:
    class InTheHead(nn.Module):
        """The head, where distances are, is adapted; what comes before is not."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(FEATURES, 5), WithoutSecondDerivative()
            self.head.first = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x))

    learner = MetaLearner(InTheHead(), by_differences(), adapt=["head.*"])
    with pytest.raises(UsageError, match=r"no second derivative to what is not adapted .*adapt all parameters"):
        preflight(learner, episode())
    preflight(MetaLearner(InTheHead(), by_differences()), episode())


FINE = {
    "mlp": (lambda: MLP(FEATURES, WAY, [5]), exact, None),
    "own": (Body, exact, None),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, WAY)), exact, None),
    "distances_by_differences": (WithoutSecondDerivative, by_differences, None),
    "distances_first_order": (WithoutSecondDerivative, FirstOrder, None),
    "wrong_but_not_asked": (WrongSecondDerivative, Implicit, None),
    "words": (Words, exact, lambda: torch.randint(9, (TASKS, EXAMPLES, 3))),
    "weight_norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)), exact, None),
    "conv4": (lambda: Conv4(WAY, size=16, filters=4), exact, lambda: torch.randn(TASKS, EXAMPLES, 1, 16, 16)),
    "conv4_of_groups": (
        lambda: Conv4(WAY, size=16, filters=4, norm="group"),
        exact,
        lambda: torch.randn(TASKS, EXAMPLES, 1, 16, 16),
    ),
    "flat_pictures": (lambda: ResNet(WAY, size=16, filters=4), exact, lambda: torch.zeros(TASKS, EXAMPLES, 1, 16, 16)),
    "lstm": (lambda: Last(nn.LSTM(4, 3, batch_first=True)), exact, lambda: torch.randn(TASKS, EXAMPLES, 5, 4)),
    "attention": (
        lambda: Last(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
        exact,
        lambda: torch.randn(TASKS, EXAMPLES, 5, 4),
    ),
}


class Last(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.LazyLinear(WAY)
        self(torch.zeros(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(x)
        return self.head((states[0] if isinstance(states, tuple) else states)[:, -1])


@pytest.mark.parametrize("name", FINE)
def test_what_works_passes_and_nothing_has_changed(name: str) -> None:
    network, adaptation, inputs = FINE[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: lazy modules are new
        learner = MetaLearner(network(), adaptation())
    given = episode(None if inputs is None else inputs())
    before, kept, drawn = copy.deepcopy(learner.state_dict()), given.support.x.clone(), torch.get_rng_state()
    modes = [module.training for module in learner.modules()]
    preflight(learner, given)
    for key, value in learner.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(given.support.x, kept)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in learner.modules()] == modes
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_shared_statistics_are_as_before() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, WAY))
    learner = MetaLearner(network, exact(), adapt=["3.*"])
    before = copy.deepcopy(learner.state_dict())
    preflight(learner, episode())
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


def test_what_vmap_changes_is_evaluated_one_task_at_a_time() -> None:
    class OwnWords(Words):
        """An option of an embedding that no module shows."""

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.embedding(x, self.words.weight, padding_idx=0).mean(1))

    learner = MetaLearner(OwnWords(), exact())
    given = episode(torch.randint(3, (TASKS, EXAMPLES, 4), generator=torch.Generator().manual_seed(1)))
    with pytest.warns(UserWarning, match="OwnWords is evaluated one task at a time: together torch gives it other"):
        preflight(learner, given)
    phi = learner.adapted(given.support).phi
    assert (phi[:, :5] == learner.flat.vector()[:5]).all(), "the row of padding stays"


def test_a_learner_asks_once_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def counted(learner: MetaLearner, given: Episode) -> None:
        calls.append(learner.global_step)

    monkeypatch.setattr("imaml_lightning.learner.meta_learner.preflight", counted)
    learner = MetaLearner(MLP(FEATURES, WAY, [5]), exact())

    loader = torch.utils.data.DataLoader([episode()] * 3, batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning: few workers
        Trainer(max_steps=3, accelerator="cpu", barebones=True).fit(learner, loader)
    assert calls == [0]
