"""Padding counts for nothing under any loss: tasks of unequal size against each of them alone, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_learners import gradients, implicit, learner
from torch import Tensor, nn
from torch.nn import functional

from imaml_lightning import Episode, Examples, FlatNetwork, InnerObjective, MetaLearner, ProximalTerm, Unrolled
from imaml_lightning.episode import IGNORED
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.criterion import ByTargets
from imaml_lightning.models import LearnedLoss
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem import losses
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.rows import no_sync

SIZES = (6, 3, 5)


class OfPairs(nn.Module):
    """A loss of a user's own that no entry has alone."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().mean() + 0.1 * (z.unsqueeze(0) - z.unsqueeze(1)).square().mean()


class FocalLoss(nn.CrossEntropyLoss):
    """A subclass that computes something else."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (1 - (-functional.cross_entropy(z, y, reduction="none")).exp()).square().mean()


def hooked(loss: nn.Module) -> nn.Module:
    loss.register_forward_hook(lambda module, inputs, value: value + inputs[0].mean())
    return loss


def learned(base: nn.Module) -> nn.Module:
    loss = LearnedLoss(base, hidden=4)
    nn.init.normal_(loss.net[-1].weight)
    return loss.double()


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


VALUES: dict[str, nn.Module] = {
    "mse": nn.MSELoss(),
    "mse_sum": nn.MSELoss(reduction="sum"),
    "l1": nn.L1Loss(),
    "smooth_l1": nn.SmoothL1Loss(beta=0.3),
    "huber": nn.HuberLoss(delta=0.4),
    "huber_sum": nn.HuberLoss(delta=0.4, reduction="sum"),
    "bce_with_logits": nn.BCEWithLogitsLoss(),
    "bce_with_weights": nn.BCEWithLogitsLoss(weight=numbers(0.5, 2.0), pos_weight=numbers(3.0, 0.25)),
    "bce_sum": nn.BCEWithLogitsLoss(reduction="sum"),
    "poisson": nn.PoissonNLLLoss(),
    "poisson_full": nn.PoissonNLLLoss(full=True, eps=1e-3),
    "soft_margin": nn.SoftMarginLoss(),
    "kl_batch_mean": nn.KLDivLoss(reduction="batchmean"),
    "multi_label": nn.MultiLabelSoftMarginLoss(),
    "probabilities": nn.CrossEntropyLoss(weight=numbers(1.0, 3.0), label_smoothing=0.1),
    "of_pairs": OfPairs(),
    "learned": learned(nn.MSELoss()),
    "learned_of_pairs": learned(OfPairs()),
    "hooked": hooked(nn.MSELoss()),
    "by_targets": ByTargets(),
}
CLASSES: dict[str, nn.Module] = {
    "cross_entropy": nn.CrossEntropyLoss(),
    "class_weights": nn.CrossEntropyLoss(weight=numbers(1.0, 3.0)),
    "label_smoothing": nn.CrossEntropyLoss(weight=numbers(1.0, 3.0), label_smoothing=0.2),
    "cross_entropy_sum": nn.CrossEntropyLoss(reduction="sum"),
    "ignores_a_class": nn.CrossEntropyLoss(ignore_index=7),
    "nll": nn.NLLLoss(),
    "multi_margin": nn.MultiMarginLoss(),
    "focal": FocalLoss(),
    "learned": learned(nn.CrossEntropyLoss()),
    "hooked": hooked(nn.CrossEntropyLoss()),
    "by_targets": ByTargets(),
}
CASES = [pytest.param(loss, False, id=name) for name, loss in VALUES.items()] + [
    pytest.param(loss, True, id=f"classes_{name}") for name, loss in CLASSES.items()
]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2))


def padded(classes: bool, seed: int = 0) -> Examples:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(SIZES), max(SIZES), 3, generator=g, dtype=torch.float64)
    values = torch.rand(*x.shape[:2], 2, generator=g, dtype=torch.float64)
    y = (values[..., 0] > 0.5).long() if classes else values
    for task, size in enumerate(SIZES):
        x[task, size:], y[task, size:] = 0, IGNORED if classes else torch.nan
    return Examples(x, y)


def alone(examples: Examples) -> list[tuple[Tensor, Tensor]]:
    """Each task without its padding."""
    return [(x[:size], y[:size]) for x, y, size in zip(*examples, SIZES, strict=True)]


@pytest.mark.filterwarnings(
    "ignore:CrossEntropyLoss is evaluated one task at a time"
)  # weights and smoothing, by torch
@pytest.mark.parametrize(("loss", "classes"), CASES)
def test_loss_and_its_derivatives_are_those_of_each_task_alone(loss: nn.Module, classes: bool) -> None:
    examples = padded(classes)
    z = torch.randn(*examples.x.shape[:2], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z.requires_grad_()
    each = task_losses(loss, z, examples)
    expected = torch.stack([loss(row[: len(y)], y) for row, (_, y) in zip(z, alone(examples), strict=True)])
    torch.testing.assert_close(each, expected)
    found, wanted = (torch.autograd.grad(value.sum(), z, create_graph=True)[0] for value in (each, expected))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(second(found, z), second(wanted, z))


@pytest.mark.filterwarnings("ignore:.*is evaluated one task at a time")
@pytest.mark.filterwarnings("ignore:.*performance drop")
@pytest.mark.parametrize(("loss", "classes"), CASES)
def test_loss_and_its_derivatives_without_padding(loss: nn.Module, classes: bool) -> None:
    examples = Examples(*(part[:, : min(SIZES)] for part in padded(classes)))
    z = torch.randn(*examples.x.shape[:2], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z.requires_grad_()
    each = task_losses(loss, z, examples)
    expected = torch.stack([loss(row, y) for row, y in zip(z, examples.y, strict=True)])
    torch.testing.assert_close(each, expected)
    found, wanted = (torch.autograd.grad(value.sum(), z, create_graph=True)[0] for value in (each, expected))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(second(found, z), second(wanted, z))


class Doubled(ByTargets):
    """A subclass of the default criterion that computes something else."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().forward(outputs, targets)


@pytest.mark.parametrize("classes", [False, True])
def test_a_subclass_of_a_known_loss_is_computed_as_it_is(classes: bool) -> None:
    examples = Examples(*(part[:, : min(SIZES)] for part in padded(classes)))
    z = torch.randn(*examples.x.shape[:2], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(task_losses(Doubled(), z, examples), 2 * task_losses(ByTargets(), z, examples))


def second(slope: Tensor, z: Tensor) -> Tensor:
    """A derivative of the slope; 0 where torch has none."""
    try:
        return torch.autograd.grad(slope.square().sum(), z)[0]
    except RuntimeError:
        return torch.zeros_like(z)


MADE = {"implicit": lambda: implicit(steps=8), "unrolled": lambda: Unrolled(SGD(lr=0.1), steps=2)}


@pytest.mark.parametrize("adaptation", MADE)
@pytest.mark.parametrize("name", ["bce_with_logits", "bce_sum", "poisson", "huber", "of_pairs", "learned"])
def test_meta_gradient_is_the_mean_of_those_of_each_task_alone(name: str, adaptation: str) -> None:
    built = MetaLearner(network(), MADE[adaptation](), VALUES[name]).double()
    support, query = padded(False), padded(False, seed=2)
    found = gradients(built, Episode(support, query))
    tasks = [
        Episode(Examples(xs[None], ys[None]), Examples(xq[None], yq[None]))
        for (xs, ys), (xq, yq) in zip(alone(support), alone(query), strict=True)
    ]
    each = [gradients(built, task) for task in tasks]
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, torch.stack([one[parameter] for one in each]).mean(0))


def test_a_learned_support_loss_of_padded_values() -> None:
    loss, examples = VALUES["learned"], padded(False)
    built = MetaLearner(network(), criterion=nn.MSELoss(), support_criterion=loss).double()
    objective = built.objective(examples)
    expected = [loss(built.network(x), y) for x, y in alone(examples)]
    torch.testing.assert_close(objective.support_loss(objective.start()), torch.stack(expected))


@pytest.mark.parametrize("name", ["mse", "bce_with_weights", "huber_sum"])
def test_the_same_where_nothing_may_be_looked_at(name: str) -> None:
    examples = padded(False)
    z = torch.randn(*examples.y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with no_sync():
        each = task_losses(VALUES[name], z, examples)
        assert task_losses(OfPairs(), z, examples).isnan().tolist() == [False, True, True]
    torch.testing.assert_close(each, task_losses(VALUES[name], z, examples))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated", "ignore:.*LeafSpec")
@pytest.mark.parametrize("name", ["bce_with_logits", "mse_sum", "of_pairs"])
def test_the_same_compiled(name: str) -> None:
    torch._dynamo.reset()
    built = learner(network(), implicit(steps=3), VALUES[name])
    episode = Episode(padded(False), padded(False, seed=2))
    expected = gradients(built, episode)
    built.derivatives = CompiledDerivatives(built.flat, built.criterion, "eager")
    torch.testing.assert_close(gradients(built, episode), expected)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="none"), nn.CrossEntropyLoss(reduction="none"), nn.KLDivLoss(reduction="none")]
)
def test_a_loss_of_many_numbers_is_refused(loss: nn.Module) -> None:
    examples = padded(isinstance(loss, nn.CrossEntropyLoss))
    with pytest.raises(UsageError, match=r"Loss gives numbers of shape .*: it must give one"):
        task_losses(loss, torch.zeros(*examples.x.shape[:2], 2).double(), examples)


def test_all_at_once_where_it_is_known_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop over tasks for the common losses."""
    calls = list[Callable]()
    monkeypatch.setattr(losses, "per_task", lambda f, *a: calls.append(f) or torch.zeros(3))
    for loss, classes in ((nn.MSELoss(), False), (nn.BCEWithLogitsLoss(), False), (nn.CrossEntropyLoss(), True)):
        examples = padded(classes)
        task_losses(loss, torch.zeros(*examples.x.shape[:2], 2).double(), examples)
    assert len(calls) == 2  # cross-entropy needs no vmap


def of_a_linear_head(loss: nn.Module, examples: Examples) -> InnerObjective:
    torch.manual_seed(0)
    flat = FlatNetwork(nn.Linear(3, 2).double())
    return InnerObjective(flat, examples, flat.vector().detach(), ProximalTerm().double(), loss)


@pytest.mark.parametrize("missing", [False, True], ids=["rows", "single_values"])
def test_the_exact_inverse_of_a_linear_head_knows_padding(missing: bool) -> None:
    examples = padded(False)
    if missing:
        examples.y[0, 1, 1] = torch.nan
    objective = of_a_linear_head(nn.MSELoss(), examples)
    at = objective.linearise(objective.start())
    v = torch.randn(at.phi.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u = at.inverse()(v)
    torch.testing.assert_close(at.loss.hvp(u) + at.proximal_hvp(u), v)


@pytest.mark.parametrize("loss", [CLASSES["ignores_a_class"], CLASSES["hooked"], FocalLoss()], ids=str)
def test_there_is_no_exact_inverse_for_a_loss_that_is_not_known(loss: nn.Module) -> None:
    objective = of_a_linear_head(loss, padded(True))
    with pytest.raises(UsageError, match="the exact inverse"):
        objective.linearise(objective.start()).inverse()
