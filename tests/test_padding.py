"""Padding of unequal tasks counts in no figure: each task of a batch against the same task alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import implicit, learner, smooth_mlp
from torch import nn

from imaml_lightning.cli.report import write_predictions
from imaml_lightning.data import SPLITS, EpisodeDataModule, Tasks
from imaml_lightning.episode import IGNORED, Episode, Examples, as_float
from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.figures import contact_sheet, regression_fits
from imaml_lightning.evaluation.protocols import Evaluation, calibration, evaluate, extremes, one_at_a_time
from imaml_lightning.evaluation.uncertainty import predictive_variance
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.models import MLP
from imaml_lightning.problem.curvature import GaussNewton
from imaml_lightning.problem.proximal import NoProximalTerm

COUNT = 12
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def tasks(kind: str) -> Tasks:
    """Tasks of 3 to 14 rows of two features."""
    rng = np.random.default_rng(0)

    def one(rows: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(rows, 2))
        return x, (x[:, 0] + 0.3 * rng.normal(size=rows) if kind == "regression" else (np.arange(rows) + 1) // 2 % 3)

    return Tasks({split: [one(3 + i) for i in range(COUNT)] for split in SPLITS})


def trained(kind: str) -> tuple[MetaLearner, EpisodeDataModule]:
    torch.manual_seed(0)
    network = MLP(2, 1 if kind == "regression" else 3, [6], nn.Softplus)
    built = learner(
        network, implicit(GaussNewton(), lr=0.05, steps=50), nn.MSELoss() if kind == "regression" else None
    ).float()
    return built, EpisodeDataModule(tasks(kind), way=3, shot=2, query=4, tasks=5, test_episodes=COUNT)


def alone(built: MetaLearner, data: EpisodeDataModule) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs and targets of every test task, of its real examples alone."""
    found = []
    for number in range(COUNT):
        episode = data.episode("test", number)
        unpadded = Episode(*(Examples(e.x[:, e.real()[0]], e.y[:, e.real()[0]]) for e in episode))
        found.append((built.outputs(unpadded)[1][0], unpadded.query.y[0]))
    return found


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("answer", ["all_at_once", "one_at_a_time"])
def test_scores_are_means_over_real_examples(kind: str, answer: str) -> None:
    built, data = trained(kind)
    options = {"answer": one_at_a_time} if answer == "one_at_a_time" else {}
    evaluation = evaluate(built, data, episodes=COUNT, **options)
    pairs = alone(built, data)
    if kind == "regression":
        expected = [(outputs - y).square().mean().item() for outputs, y in pairs]
        losses = expected
    else:
        expected = [(outputs.argmax(1) == y).double().mean().item() for outputs, y in pairs]
        losses = [nn.functional.cross_entropy(outputs, y).item() for outputs, y in pairs]
    assert evaluation.scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert evaluation.losses.tolist() == pytest.approx(losses, rel=1e-5)
    assert evaluation.mean()[0] == pytest.approx(np.mean(expected), rel=1e-5)
    assert evaluation.gain_over(evaluation) == (0, 0)
    easy, hard = extremes(evaluation)
    key = losses if kind == "regression" else [a - 1e-6 * loss for a, loss in zip(expected, losses, strict=True)]
    best, worst = (np.argmin, np.argmax) if kind == "regression" else (np.argmax, np.argmin)
    assert (easy, hard) == (best(key), worst(key))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_evaluation_says_what_the_test_step_says(kind: str) -> None:
    built, data = trained(kind)
    trainer = Trainer(inference_mode=False, **QUIET)
    logged = trainer.test(built, data, verbose=False)[0]
    name = "test/loss" if kind == "regression" else "test/accuracy_inductive"
    data.trainer = None
    mean, half = evaluate(built, data, episodes=COUNT).mean()
    assert mean == pytest.approx(logged[name], rel=1e-5)
    assert half == pytest.approx(logged[f"{name}_ci95"], rel=1e-4)


def test_gain_tells_episodes_apart_by_their_real_targets() -> None:
    nan = torch.nan
    outputs, y = torch.zeros(2, 3, 1), torch.tensor([[[1.0], [2.0], [nan]], [[1.0], [nan], [nan]]])
    other = Evaluation(outputs + 1, y.clone())
    assert Evaluation(outputs, y).gain_over(other)[0] == pytest.approx((2.5 + 1 - 0.5 - 0) / 2)
    y[0, 1] = 3.0
    with pytest.raises(UsageError, match="other episodes"):
        Evaluation(outputs, y).gain_over(other)


def test_calibration_counts_real_answers_only() -> None:
    built, data = trained("classification")
    result = calibration(evaluate(built, data, episodes=COUNT), bins=4)
    outputs, targets = (torch.cat(each) for each in zip(*alone(built, data), strict=True))
    expected = calibration(Evaluation(outputs[None], targets[None]), bins=4)
    for name in ("confidence", "accuracy", "share"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), equal_nan=True)
    with pytest.raises(UsageError, match="of a regression"):
        calibration(Evaluation(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)))


def test_predictive_variance_is_that_of_each_task_alone() -> None:
    built, data = trained("regression")
    built = built.double()
    episode = data.episode("test", 0, tasks=COUNT)
    episode = Episode(*(Examples(e.x.double(), e.y.double()) for e in episode))
    variance = predictive_variance(built, episode)
    for number in range(COUNT):
        one = Episode(
            *(Examples(e.x[number, e.real()[number]][None], e.y[number, e.real()[number]][None]) for e in episode)
        )
        mine = episode.query.real()[number]
        torch.testing.assert_close(variance[number, mine], predictive_variance(built, one)[0])
        assert variance[number, ~mine].isnan().all()


def test_predictive_variance_of_what_its_formula_does_not_hold_for_is_refused() -> None:
    one = Examples(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1))
    built = MetaLearner(smooth_mlp(), implicit(), nn.MSELoss())
    built.adaptation.proximal = NoProximalTerm()
    with pytest.raises(UsageError, match="needs one λ"):
        predictive_variance(built, Episode(one, one))
    with pytest.raises(UsageError, match="needs one λ"):
        predictive_variance(MetaLearner(smooth_mlp(), implicit(per="tensor"), nn.MSELoss()), Episode(one, one))
    two = Examples(one.x, torch.zeros(1, 3, 2))
    with pytest.raises(UsageError, match="one output"):
        predictive_variance(MetaLearner(smooth_mlp(), implicit(), nn.MSELoss()), Episode(two, two))


def test_a_network_that_would_count_padding_is_not_evaluated() -> None:
    _, data = trained("classification")
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(UsageError, match="would count the padding"):
        evaluate(MetaLearner(network), data, episodes=2)
    running = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    built = MetaLearner(running, adapt=["2.*"])
    evaluate(built, data, episodes=2)  # by its running statistics
    with pytest.raises(UsageError, match="would count the padding"):
        data.check_network(built)
    data.check_network(built, training=False)


def test_padding_is_not_predicted(tmp_path: Path) -> None:
    built, data = trained("classification")
    trainer = Trainer(inference_mode=False, **QUIET)
    batches = trainer.predict(built, data)
    real = torch.cat([data.episode("test", n).query.real() for n in range(COUNT)])
    assert torch.equal(~torch.cat(batches).isnan().any(-1), real)
    write_predictions(tmp_path / "p.csv", batches)
    with (tmp_path / "p.csv").open(newline="") as file:
        predicted = [row["prediction"] != "" for row in csv.DictReader(file)]
    assert predicted == real.flatten().tolist()


def test_figures_leave_padding_out() -> None:
    nan = torch.nan
    part = Examples(torch.tensor([[[3.0], [1.0], [0.0]]]), torch.tensor([[[5.0], [4.0], [nan]]]))
    axes = regression_fits(Episode(part, part), torch.zeros(1, 3, 1), torch.ones(1, 3, 1)).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 3], [1, 3], [1, 3], [3, 1]]
    x = torch.zeros(1, 4, 1, 5, 5, dtype=torch.uint8)
    part = Examples(x, torch.tensor([[1, 2, 2, IGNORED]]))  # no picture of class 0
    figure = contact_sheet(as_float(Episode(part, part)), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3))
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in shown if text.startswith("class ")] == ["class 1", "class 2"]
    assert len(figure.axes[0].images) == 2 + 3
