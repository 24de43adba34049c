"""Certificates under mixed precision, against float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import images, points, smooth_conv, smooth_mlp
from torch import Tensor, nn

from imaml_lightning import Episode, Examples, Implicit, MetaLearner, Unrolled, UsageError
from imaml_lightning.inner import GradientDescent, HessianFree, InnerSolver
from imaml_lightning.linear import ConjugateGradient, LinearSolver, Minres
from imaml_lightning.models import Conv4
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem.curvature import Curvature, FiniteDifference, GaussNewton, Hessian
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.solution import Solution


@dataclass(frozen=True)
class Noted(LinearSolver):
    """Another solver that notes what it was asked and what it said."""

    by: LinearSolver
    notes: list[tuple[Tensor, Solution]]

    def solve(self, product, rhs: Tensor) -> Solution:
        solution = self.by.solve(product, rhs)
        self.notes.append((rhs, solution))
        return solution


def single(episode: Episode) -> Episode:
    return Episode(*(Examples(p.x.float(), p.y.float() if p.y.is_floating_point() else p.y) for p in episode))


NETWORKS = {
    "mlp": (smooth_mlp, nn.MSELoss, points),
    "conv": (smooth_conv, nn.CrossEntropyLoss, images),
    "Conv4": (lambda: Conv4(3, size=4, filters=8, downsample="stride"), nn.CrossEntropyLoss, images),
}


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("inner", [GradientDescent(0.1, 8), HessianFree(max_steps=2)], ids=["descent", "hessian_free"])
@pytest.mark.parametrize(
    ("curvature", "solver"),
    [
        (GaussNewton(), ConjugateGradient(20, 1e-4)),
        (Hessian(), ConjugateGradient(20, 1e-4)),
        (Hessian(), Minres(20, 1e-4)),
        (FiniteDifference(), ConjugateGradient(10, 1e-2)),
    ],
    ids=["gauss_newton", "hessian", "minres", "differences"],
)
def test_residuals_under_bf16_are_the_true_ones(
    network: str, inner: InnerSolver, curvature: Curvature, solver: LinearSolver
) -> None:
    if network == "Conv4" and isinstance(curvature, FiniteDifference):
        pytest.skip("differences across the kinks of ReLU are no Hessian")
    make, criterion, draw = NETWORKS[network]
    torch.manual_seed(0)
    notes: list[tuple[Tensor, Solution]] = []
    learner = MetaLearner(make(), Implicit(inner, Noted(solver, notes), curvature), criterion())
    episode = single(draw())
    with torch.autocast("cpu", torch.bfloat16):
        adapted = learner.adapted(episode.support)
        learner.judge(adapted.phi, episode.query)["loss"].sum().backward()
    [(v, linear)] = notes
    exact = copy.deepcopy(learner).double()
    support = Examples(episode.support.x.double(), draw().support.y)
    at = exact.objective(
        Examples(support.x, support.y.double() if support.y.is_floating_point() else support.y)
    ).linearise(adapted.phi.detach().double())
    torch.testing.assert_close(adapted.stationarity.double(), at.stationarity(), rtol=1e-3, atol=1e-5)
    product = (Hessian() if isinstance(curvature, FiniteDifference) else curvature).product(at, linear.value.double())
    true = (product - v.double()).norm(dim=1) / v.double().norm(dim=1)
    slack = 3e-3 if isinstance(curvature, FiniteDifference) else 2e-5
    torch.testing.assert_close(linear.residual.double(), true, rtol=0.02, atol=slack)


@pytest.mark.parametrize("strength", [1e-3, 2.0, 0.1, 30.0])
@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
def test_strength_is_what_was_asked_for_in_float64(strength: float, per: str) -> None:
    learner = MetaLearner(smooth_mlp(), Implicit(proximal=ProximalTerm(strength, per, learn=True)))
    learner.double()
    found = learner.adaptation.proximal.strength().detach()
    torch.testing.assert_close(found, torch.full_like(found, strength), rtol=1e-13, atol=0)
    again = copy.deepcopy(learner).float()
    torch.testing.assert_close(again.adaptation.proximal.strength().detach(), found.float(), rtol=1e-6, atol=0)


def test_a_strength_that_was_learned_survives_a_change_of_type() -> None:
    learner = MetaLearner(smooth_mlp(), Implicit(proximal=ProximalTerm(2.0, learn=True)))
    raw = learner.adaptation.proximal.raw
    with torch.no_grad():
        raw.add_(0.25)
    before = raw.detach().clone()
    learner.double()
    assert torch.equal(learner.adaptation.proximal.raw, before.double())


@pytest.mark.parametrize(("name", "value"), [("lr", 0.05), ("momentum", 0.7)])
def test_learned_hyperparameters_start_where_they_should_in_float64(name: str, value: float) -> None:
    adaptation = Unrolled(SGD(lr=0.05, momentum=0.7), 2, learned=[Learned(name, "tensor", per_step=True)])
    MetaLearner(smooth_mlp(), adaptation).double()
    found = adaptation.learned[name](1).detach()
    torch.testing.assert_close(found, torch.full_like(found, value), rtol=1e-13, atol=0)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_network_in_half_precision_is_refused(precision: str) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    learner = MetaLearner(smooth_mlp(), criterion=nn.MSELoss())
    with pytest.raises(UsageError, match=f"precision {precision} leaves no digits"):
        trainer.fit(learner, torch.utils.data.DataLoader([single(points())], batch_size=None))


@pytest.mark.parametrize("first", ["linearise", "value_and_gradient"])
def test_autocast_that_begins_or_ends_changes_no_objective(first: str) -> None:
    learner, episode = MetaLearner(Conv4(3, size=4, filters=8, downsample="stride")), single(images())
    objective = learner.objective(episode.support)
    phi = objective.start()
    expected = learner.objective(episode.support).value_and_gradient(phi)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = learner.objective(episode.support).value_and_gradient(phi)
        getattr(objective, first)(phi)  # whatever comes first chooses nothing for the others
        for found, there in zip(objective.value_and_gradient(phi), rounded, strict=True):
            assert torch.equal(found, there)
        certified = objective.linearise(phi).gradient.detach()
    torch.testing.assert_close(certified - objective.proximal.product(phi - objective.theta), expected[1])
    for found, there in zip(objective.value_and_gradient(phi), expected, strict=True):
        assert torch.equal(found, there)
    assert not torch.equal(rounded[1], expected[1])
