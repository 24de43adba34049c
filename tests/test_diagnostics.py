"""Diagnostics and evaluation against sums written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import Tiny
from tiny_learners import images, implicit, learner, points, smooth_conv, smooth_mlp
from torch import nn

from imaml_lightning.adaptation import Reptile, Unrolled
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.confusion import classes_by_group, confusion
from imaml_lightning.evaluation.diagnostics import adaptation_curve, solves, trace
from imaml_lightning.evaluation.protocols import Evaluation, calibration, extremes, one_at_a_time
from imaml_lightning.evaluation.uncertainty import predictive_variance
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import Conv4
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import GaussNewton
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.solution import Result


def test_trace_is_the_way_of_gradient_descent() -> None:
    built, episode = learner(smooth_conv(), implicit()), images()
    objective = built.objective(episode.support)
    way = trace(GradientDescent(0.1, 5), objective)
    phi = objective.start()
    assert torch.equal(way[0], phi)
    for point in way[1:]:
        slope = torch.func.grad(lambda at: objective.value(at).sum())(phi)
        phi = phi - 0.1 * slope
        torch.testing.assert_close(point, phi)
    assert len(way) == 6


def test_adaptation_curve_goes_from_theta_to_phi_and_beyond() -> None:
    built, episode = learner(smooth_conv(), implicit(steps=4)), images()
    curve = adaptation_curve(built, episode)
    assert curve.evaluations == [0, 1, 2, 3, 4]
    before, after = built.outputs(episode)
    for outputs, row in ((before, 0), (after, -1)):
        accuracy = (outputs.argmax(-1) == episode.query.y).double().mean(1)
        torch.testing.assert_close(curve.figures["accuracy"][row], accuracy)
    longer = adaptation_curve(built, episode, max_steps=90)
    assert longer.evaluations[-1] == 90
    assert longer.figures["loss"].shape == (len(longer.evaluations), 3)
    shared = [longer.evaluations.index(step) for step in (0, 1, 3)]
    torch.testing.assert_close(longer.figures["loss"][shared], curve.figures["loss"][[0, 1, 3]])


@pytest.mark.parametrize("kind", [Unrolled, Reptile])
def test_adaptations_without_an_inner_solver_have_curves_and_no_linear_solve(kind: type[Unrolled]) -> None:
    built, episode = learner(smooth_conv(), kind(SGD(lr=0.1), steps=3, proximal=ProximalTerm(0.5))), images()
    assert adaptation_curve(built, episode).figures["loss"].shape == (4, 3)
    assert solves(built, episode).linear is None
    with pytest.raises(UsageError, match="no inner solver"):
        adaptation_curve(built, episode, max_steps=9)


def test_solves_report_every_task() -> None:
    report = solves(learner(smooth_conv(), implicit(GaussNewton())), images())
    assert report.stationarity.shape == (3,)
    assert report.linear is not None
    assert report.linear.result.tolist() == [Result.CONVERGED] * 3


def test_one_at_a_time_does_not_see_the_other_query_examples() -> None:
    torch.manual_seed(0)
    built = learner(Conv4(3, size=16, filters=4, downsample="stride"), implicit(GaussNewton(), steps=3))
    support = Examples(torch.randn(2, 6, 1, 16, 16, dtype=torch.float64), torch.arange(3).repeat(2, 2))
    query = Examples(torch.randn(2, 4, 1, 16, 16, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.int64))
    first = one_at_a_time(built, Episode(support, query))
    phi = built.adapted(support).phi.detach()
    for task in range(2):
        for example in range(4):
            batch = torch.cat([support.x[task], query.x[task, example : example + 1]])
            torch.testing.assert_close(first[task, example], built.flat(phi[task], batch)[-1].detach())
    changed = query.x.clone()
    changed[:, 1:] += 1
    other = Episode(support, Examples(changed, query.y))
    torch.testing.assert_close(one_at_a_time(built, other)[:, 0], first[:, 0])
    assert not torch.allclose(built.outputs(other)[1][:, 0], first[:, 0])


def logits(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()[None]


def test_calibration_by_hand() -> None:
    outputs = logits([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.35, 0.65]])
    result = calibration(Evaluation(outputs, torch.tensor([[0, 1, 0, 1]])), bins=10)
    assert result.share.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    assert result.accuracy[[6, 9]].tolist() == [1.0, 0.5]
    assert result.confidence[[6, 9]].tolist() == pytest.approx([0.625, 0.95])
    assert result.error == pytest.approx(0.5 * (1 - 0.625) + 0.5 * (0.95 - 0.5))


def test_scores_gains_and_extremes() -> None:
    targets = torch.tensor([[0, 1], [0, 1], [0, 1]])
    good = Evaluation(torch.stack([logits([[0.9, 0.1], [0.2, 0.8]])[0]] * 3), targets)
    bad = Evaluation(good.outputs.clone(), targets)
    bad.outputs[1] = bad.outputs[1].flip(0)
    assert bad.scores.tolist() == [1, 0, 1]
    assert good.gain_over(bad) == pytest.approx((1 / 3, 1.96 * (1 / 3) / 3**0.5 * 3**0.5))
    assert extremes(bad)[1] == 1
    with pytest.raises(UsageError, match="other episodes"):
        good.gain_over(Evaluation(good.outputs[:2], targets[:2]))


class Perfect(nn.Module):
    """Answers by the class number that Tiny paints in the first row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def outputs(self, episode):
        near = (episode.query.x[:, :, None, 0, 0, 0] - episode.support.x[:, None, :, 0, 0, 0]).abs()
        return None, -near


def test_confusion_counts_only_what_stood_to_choose(tmp_path: Path) -> None:
    source = Tiny(cache=str(tmp_path))
    source.prepare()
    shares = confusion(Perfect(), source, list(source.bank.splits["val"]), way=3, query=2, episodes=3)
    seen = ~shares.isnan()
    assert seen.sum() < 49  # three episodes of three classes cannot show all pairs of seven
    assert torch.equal(shares[seen], torch.eye(7, dtype=torch.float64)[seen])
    assert classes_by_group(source, "val") == {"val0": [12, 14, 16, 18], "val1": [13, 15, 17]}


def test_predictive_variance_is_that_of_dense_algebra() -> None:
    episode = points()
    built = learner(smooth_mlp(), implicit(GaussNewton(), strength=0.7), nn.MSELoss())
    with torch.no_grad():
        built.adaptation.proximal.raw.fill_(np.log(np.expm1(0.7)))
    variance = predictive_variance(built, episode)
    phi = built.adapted(episode.support).phi.detach()
    for task in range(3):
        js, jq = (torch.func.jacrev(built.flat)(phi[task], part.x[task])[:, 0] for part in episode)
        a = 2 / 6 * js.T @ js + 0.7 * torch.eye(js.shape[1], dtype=torch.float64)
        expected = 2 / 6 * torch.diagonal(jq @ torch.linalg.inv(a) @ jq.T)
        torch.testing.assert_close(variance[task], expected)
