"""adapt: predictions, the report and the spread, against plain loops over the same learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from imaml_lightning import Episode, Examples, MetaLearner, UsageError, adapt
from imaml_lightning.adaptation import Implicit
from imaml_lightning.inner import GradientDescent, Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import MLP, AnyWay, Conv4, OneHotSquaredError
from imaml_lightning.problem import Hessian
from imaml_lightning.problem.proximal import ProximalTerm

INNER = Implicit(GradientDescent(0.3, 20), proximal=ProximalTerm(0.5))


def classifier(outputs: int = 4, seed: int = 0) -> MetaLearner:
    torch.manual_seed(seed)
    return MetaLearner(MLP(3, outputs, [6], nn.Tanh), INNER)


def regressor(seed: int = 0) -> MetaLearner:
    torch.manual_seed(seed)
    return MetaLearner(MLP(3, 1, [6], nn.Tanh), INNER, nn.MSELoss())


def points(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around three corners, and the corner of each."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return 2 * np.eye(3)[y] + 0.3 * rng.normal(size=(count, 3)), y


def outputs(learner: MetaLearner, x, y, query) -> torch.Tensor:
    """Of the learner's own evaluation."""
    support = Examples(torch.tensor(x, dtype=torch.float32)[None], torch.as_tensor(y)[None])
    asked = torch.tensor(query, dtype=torch.float32)
    dummy = torch.zeros(len(asked), dtype=torch.long)
    return learner.outputs(Episode(support, Examples(asked[None], dummy[None])))[1][0]


def test_probabilities_are_those_of_the_evaluation_over_the_classes_there_are() -> None:
    x, y = points(9)
    query, truth = points(30, 1)
    words = np.array(["cat", "dog", "eel"])
    predictor = adapt(classifier(), x, words[y])
    assert predictor.labels == ["cat", "dog", "eel"]
    expected = outputs(classifier(), x, y, query)[:, :3].softmax(1)
    torch.testing.assert_close(predictor(query), expected)
    assert (predictor(query).argmax(1).numpy() == truth).mean() > 0.9


@pytest.mark.parametrize("way", [2, 3, 7])
def test_a_head_for_any_number_of_classes_predicts_as_many_as_the_support_set_has(way: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), AnyWay(6))
    solved = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1))
    learner = MetaLearner(network, solved, support_criterion=OneHotSquaredError(), adapt=["2.weight"])
    x, y = points(17)[0], np.arange(17) % (way - 1)
    y[16] = way - 1  # of the last class there is one example, which is left out in a chunk of its own
    query = points(30, 1)[0]
    predictor = adapt(learner, x, y)
    assert predictor(query).shape == (30, way)
    torch.testing.assert_close(predictor(query), outputs(learner, x, y, query).softmax(1))
    report = predictor.report()
    assert report.classes == way
    assert report.loss_after < report.loss_before


def test_order_and_blocks_of_queries_do_not_matter() -> None:
    predictor = adapt(classifier(), *points(9))
    query = points(600, 1)[0]
    torch.testing.assert_close(predictor(query[::-1].copy()), predictor(query).flip(0))


def test_an_ensemble_is_the_mean() -> None:
    x, y = points(6)
    learners = [classifier(seed=seed) for seed in range(3)]
    query = points(5, 1)[0]
    alone = torch.stack([adapt(learner, x, y)(query) for learner in learners])
    torch.testing.assert_close(adapt(learners, x, y)(query), alone.mean(0))


def test_report_on_classes() -> None:
    x, y = points(9)
    y[-1] = 1  # of class 2 there are two, and a wrong one of class 1
    learner = classifier()
    report = adapt(learner, x, y).report()
    logits = outputs(learner, x, y, x)
    assert report.loss_after == pytest.approx(nn.functional.cross_entropy(logits, torch.tensor(y)).item(), rel=1e-5)
    before = learner.network(torch.tensor(x, dtype=torch.float32))
    assert report.loss_before == pytest.approx(nn.functional.cross_entropy(before, torch.tensor(y)).item(), rel=1e-5)
    right = [
        int(outputs(learner, np.delete(x, i, 0), np.delete(y, i), x[i : i + 1])[0, :3].argmax()) == y[i]
        for i in range(9)
    ]
    assert report.left_out == pytest.approx(np.mean(right))
    assert 0 < report.left_out < 1
    assert report.baseline == pytest.approx(1 / 3)
    assert "adaptation helped" in str(report)
    assert f"{report.left_out:.1%} right; guessing has 33.3%" in str(report)


def test_report_on_one_example_a_class_says_that_none_can_be_left_out() -> None:
    report = adapt(classifier(), *points(3)).report()
    assert report.left_out is None
    assert "too few examples" in str(report)


def test_regression_with_the_jackknife_spread() -> None:
    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
    y = x[:, :1] - 2 * x[:, 1:2]
    learner = regressor()
    predictor = adapt(learner, x, y[:, 0])
    y32 = y.astype(np.float32)
    torch.testing.assert_close(predictor(query), outputs(learner, x, y32, query))
    left = np.stack([outputs(learner, np.delete(x, i, 0), np.delete(y32, i, 0), query).numpy() for i in range(7)])
    spread = np.sqrt(6 / 7 * ((left - left.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(predictor.spread(query).numpy(), spread, rtol=1e-3)
    report = predictor.report()
    errors = [
        outputs(learner, np.delete(x, i, 0), np.delete(y32, i, 0), x[i : i + 1]).item() - y[i, 0] for i in range(7)
    ]
    assert report.left_out == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-3)
    means = [np.delete(y, i).mean() - y[i, 0] for i in range(7)]
    assert report.baseline == pytest.approx(np.sqrt(np.mean(np.square(means))), rel=1e-5)
    assert adapt(learner, x[:2], y[:2]).spread(query).isnan().all()


def test_spread_of_an_ensemble_is_over_its_members() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    learners = [regressor(seed) for seed in range(3)]
    alone = torch.stack([adapt(learner, x, x[:, 0])(x) for learner in learners])
    torch.testing.assert_close(adapt(learners, x, x[:, 0]).spread(x), alone.std(0))


def test_images_and_batch_statistics() -> None:
    """uint8 is scaled as in training; a query is normalised beside the support set, not by itself."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (8, 1, 16, 16), generator=g, dtype=torch.uint8)
    torch.manual_seed(0)
    learner = MetaLearner(Conv4(2, size=16, filters=8), Implicit(GradientDescent(0.1, 5)))
    predictor = adapt(learner, x, [0, 1] * 4)
    torch.testing.assert_close(predictor(x[:1]), adapt(learner, x.float() / 255, [0, 1] * 4)(x[:1].float() / 255))
    phi = learner.adapted(Examples(x.float()[None] / 255, torch.tensor([[0, 1] * 4]))).phi[0]
    expected = learner.flat(phi, torch.cat([x, x[:1]]).float() / 255)[-1:].softmax(1)
    torch.testing.assert_close(predictor(x[:1]), expected.detach())
    torch.testing.assert_close(predictor(x[:5])[:1], predictor(x[:1]))  # whatever else is asked


@pytest.mark.parametrize(
    ("x", "y", "labels", "sentence"),
    [
        (np.zeros((3, 3)), [0, 1], None, "3 inputs and 2 targets"),
        (np.zeros((2, 3)), [0.5, np.nan], None, "not finite"),
        (np.full((2, 3), np.inf), [0, 1], None, "not finite"),
        (np.zeros((0, 3)), [], None, "0 inputs and 0 targets"),
        (np.zeros((3, 4)), [0, 1, 2], None, r"cannot take inputs of shape \(4,\)"),
        (np.zeros((5, 3)), list("abcde"), None, "5 classes, the network 4 outputs"),
        (np.zeros((2, 3)), ["a", "z"], ["a", "b"], "class z of the support set is none of"),
        (np.zeros((2, 3)), [0.5, 1.5], None, "the targets have 1 values, the network 4 outputs"),
    ],
)
def test_what_cannot_be_adapted_to_is_named(x, y, labels, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        adapt(classifier(), x, y, labels)
