"""What is said of inner solves follows from what happened, and what a few diverged tasks cannot hide."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import points, smooth_mlp
from torch import nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, Implicit, MetaLearner, UsageError, adapt
from imaml_lightning.adaptation import Unrolled
from imaml_lightning.cli.predict_files import _solve_by
from imaml_lightning.cli.report import adaptation_lines
from imaml_lightning.inner import LBFGS, BacktrackingGradientDescent, GradientDescent
from imaml_lightning.learner.advice import advice, outcome
from imaml_lightning.learner.medians import EpisodeMedian
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem import ProximalTerm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)


def learner(lr: float, steps: int) -> MetaLearner:
    torch.manual_seed(0)
    adaptation = Implicit(GradientDescent(lr, steps), proximal=ProximalTerm(0.01))
    return MetaLearner(smooth_mlp(), adaptation, nn.MSELoss()).double()


def support() -> tuple[torch.Tensor, torch.Tensor]:
    (x, y), _ = points(1)
    return x[0].float(), y[0].float()


@pytest.mark.parametrize(
    ("lr", "steps", "said"),
    [
        (0.05, 3000, ": solved"),
        (0.02, 2, "not solved, falling but slow: raise max_steps"),
        (1.5, 3, "diverged, the loss rose: set a smaller inner rate, or a solver with a line search"),
        (30.0, 300, "diverged, the loss rose: set a smaller inner rate"),
    ],
)
def test_the_report_says_what_follows_from_what_happened(lr: float, steps: int, said: str) -> None:
    report = str(adapt(learner(lr, steps), *support()).report())
    assert said.removeprefix(": ") in report
    assert ("not solved" in report) == ("not solved" in said)
    assert ("raise max_steps" in report) == ("raise max_steps" in said)


@pytest.mark.parametrize("solver", [LBFGS(max_steps=60), BacktrackingGradientDescent(max_steps=400)])
def test_the_advised_solvers_need_no_rate(solver) -> None:
    diverging = learner(1.5, 3)
    _solve_by(solver, diverging)
    report = adapt(diverging, *support()).report()
    assert not report.diverged
    assert report.loss_after < report.loss_before
    assert "solved" in str(report)


def test_unrolled_steps_are_not_asked_to_solve() -> None:
    maml = MetaLearner(smooth_mlp(), Unrolled(SGD(0.02), 2), nn.MSELoss())
    assert "as far as its steps go" in str(adapt(maml, *support()).report())
    with pytest.raises(UsageError, match="Unrolled has no inner solver"):
        _solve_by(LBFGS(), maml)


def test_a_grown_gradient_is_told_from_a_slow_one() -> None:
    assert "gradient grew" in advice(0.8, 1.7, False)
    assert "raise max_steps" in advice(0.8, 0.7, False)
    assert "gradient grew" in advice(0.8, math.nan, False)
    assert advice(0.3, 0.7, False) == "roughly solved"
    assert advice(0.05, 2.0, False) == "solved"  # of a start that was stationary already


def test_outcomes_are_by_their_definition() -> None:
    built = learner(0.02, 2)
    objective = built.objective(points(3).support)
    start = objective.start()
    slope = objective.value_and_gradient(start)[1]
    phi = torch.stack([start[0] - 1e-3 * slope[0], start[1] + 1e-3 * slope[1], torch.full_like(start[2], torch.nan)])
    found = outcome(objective, objective.linearise(phi))
    assert found["inner_diverged"].tolist() == [0, 1, 1]
    ends = objective.value_and_gradient(phi)[1].norm(dim=1) / slope.norm(dim=1)
    torch.testing.assert_close(found["inner_growth"], ends, equal_nan=True)
    assert outcome(objective, objective.linearise(start))["inner_diverged"].tolist() == [0, 0, 0]


def test_the_median_is_that_of_all_episodes_and_what_is_no_number_is_the_worst() -> None:
    median = EpisodeMedian()
    for values in ([3.0, math.nan], [1.0, 2.0], [math.inf]):
        median.update(torch.tensor(values))
    assert median.compute() == 3.0
    median.update(torch.tensor([2.0]))
    assert median.compute() == 2.5


def test_test_tells_how_many_tasks_diverged_and_what_the_others_reached() -> None:
    built = learner(0.02, 8).float()
    episode = points(10)
    support = Examples(episode.support.x.float().clone(), episode.support.y.float())
    support.x[3] *= 1e3  # a curvature that the rate is much too large for
    batch = Episode(support, Examples(episode.query.x.float(), episode.query.y.float()))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [metrics] = trainer.test(built, DataLoader([batch], batch_size=None), verbose=False)
    assert metrics["test/inner_diverged"] == pytest.approx(0.1)
    theta = built.flat.vector().detach().expand(10, -1)
    phi = built.adapted(batch.support).phi.detach()
    for name, at in (("loss", phi), ("loss_before", theta)):
        values = built.judge(at, batch.query)["loss"].detach()
        assert metrics[f"test/{name}_median"] == pytest.approx(values.quantile(0.5).item(), rel=1e-5)
    lines = adaptation_lines(metrics, "test", 10, solves=True)
    before, after = metrics["test/loss_before_median"], metrics["test/loss_median"]
    assert f"(medians {before:.4g} → {after:.4g})" in lines["adaptation"]
    assert lines["inner problems"].startswith("1 of 10 diverged, their loss rose: set a smaller inner rate")
