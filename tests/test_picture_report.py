"""How far a prediction can be trusted: calibration, none of these, and the page of pictures."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from own_bodies import Convolutions, head_only
from PIL import Image
from torch import nn

from imaml_lightning import MetaLearner, adapt
from imaml_lightning.adaptation import Implicit
from imaml_lightning.evaluation.none_of_these import Threshold, _best, none_of_these
from imaml_lightning.evaluation.page import page
from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.evaluation.reliability import reliability, said
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Exact
from imaml_lightning.models import AnyWay, Backbone, OneHotSquaredError
from imaml_lightning.problem import ProximalTerm
from imaml_lightning.problem.curvature import Hessian


def points(way: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes on a circle in eight dimensions, each under noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(way).repeat(each)
    centres = np.eye(8)[:way] * 3
    return (centres[y] + spread * rng.normal(size=(len(y), 8))).astype(np.float32), y


def learner() -> MetaLearner:
    head = nn.Sequential(nn.Identity(), AnyWay(8))
    adaptation = Implicit(Newton(), Exact(), Hessian(), ProximalTerm(0.1))
    return MetaLearner(head, adaptation, support_criterion=OneHotSquaredError(5.0), adapt=["1.weight"])


def ridge(x: np.ndarray, y: np.ndarray, query: np.ndarray, strength: float = 0.1, target: float = 5.0) -> np.ndarray:
    """Softmax of W x with W = argmin ½ Σ ‖W x_i − t e_y‖² + λ/2 ‖W‖², in numpy."""
    labels = np.unique(y)
    x, query = x.astype(np.float64), query.astype(np.float64)
    goal = target * (y[:, None] == labels)
    weight = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ goal)
    z = query @ weight
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_left_out_probabilities_are_those_of_a_predictor_without_the_example() -> None:
    x, y = points(3, 4, 2.0)
    probabilities, truth, places = adapt(learner(), x, y).left_out()
    assert places == list(range(12))
    assert truth.tolist() == y.tolist()
    expected = np.stack([ridge(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1])[0] for i in places])
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-5)
    lonely = adapt(learner(), np.concatenate([x, x[:1] + 9]), [*y, 7]).left_out()
    assert lonely[2] == places  # the only one of its class cannot be left out


def test_calibration_of_left_out_examples() -> None:
    x, y = points(3, 4, 2.0)
    found = reliability(adapt(learner(), x, y), bins=4)
    p = np.stack([ridge(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1])[0] for i in range(12)])
    sure, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((sure * 4).astype(int), 3)
    error = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * np.mean(bins == b) for b in np.unique(bins))
    assert found is not None
    assert found.error == pytest.approx(error, abs=1e-5)
    assert said(found).startswith(f"{sure.mean():.1%} sure on average, {right.mean():.1%} right")
    assert reliability(adapt(learner(), x[::4], y[::4])) is None


def test_the_threshold_has_the_errors_that_it_says() -> None:
    x, y = points(5, 4, 0.5)
    found = none_of_these(adapt(learner(), x, y))
    known = np.stack([ridge(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1])[0] for i in range(20)]).max(1)
    unknown = np.concatenate([ridge(x[y != c], y[y != c], x[y == c]).max(1) for c in range(5)])

    def least(inside: np.ndarray, outside: np.ndarray) -> float:
        scores = np.unique(np.concatenate([inside, outside]))
        tried = [scores[0], *((scores[1:] + scores[:-1]) / 2)]
        return tried[int(np.argmin([np.mean(inside < t) + np.mean(outside >= t) for t in tried]))]

    missed, taken = [], []
    for c in range(5):
        at = least(known[y != c], unknown[y != c])
        missed += (known[y == c] < at).tolist()
        taken += (unknown[y == c] >= at).tolist()
    assert found is not None
    assert found.probability == pytest.approx(least(known, unknown), abs=1e-4)
    assert (found.missed, found.taken) == pytest.approx((np.mean(missed), np.mean(taken)))
    assert 0 < found.missed + found.taken < 0.8  # neither all right nor of no use


def test_a_threshold_needs_three_classes_and_two_examples_of_one() -> None:
    x, y = points(3, 2, 1.0)
    assert none_of_these(adapt(learner(), x, y)) is not None
    assert none_of_these(adapt(learner(), x[:4], y[:4])) is None
    assert none_of_these(adapt(learner(), x[::2], y[::2])) is None
    assert _best(torch.tensor([0.6, 0.9]), torch.tensor([0.2, 0.4])) == pytest.approx(0.5)


def coloured() -> tuple[Predictor, torch.Tensor, list[str]]:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(4)
    x = (40 * y[:, None, None, None] + 30 + 100 * torch.rand(12, 3, 16, 16, generator=g)).to(torch.uint8)
    model = head_only(Backbone(body=Convolutions(), without="fc", pixels=16, frozen=True)).eval()
    names = ["<b>fern</b>", "moss", "森林"]
    return adapt(model, x, [names[i] for i in y]), x, [f"{i} & co.png" for i in range(12)]


def test_the_page_stands_alone_and_shows_the_least_certain_first() -> None:
    predictor, x, names = coloured()
    p = predictor(x)
    threshold = Threshold(float(p.amax(1).median()), 0.1, 0.2)
    text = page(
        predictor, x.numpy(), p, names, "support <12>", threshold, reliability(predictor), [f"s{n}" for n in names]
    )
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<b>fern" not in text
    assert "support &lt;12&gt;" in text
    shown = re.findall(
        r"<figure( class=\"doubtful\")?>.*?base64,([^\"]+)\".*?<small>([^<]*)</small></figcaption>", text
    )[:12]
    order = p.amax(1).argsort(stable=True).tolist()
    assert [name for _, _, name in shown] == [names[i].replace("&", "&amp;") for i in order]
    assert [bool(mark) for mark, _, _ in shown] == [bool(p[i].max() < threshold.probability) for i in order]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0][1]))))
    np.testing.assert_array_equal(picture, x[order[0]].permute(1, 2, 0).numpy())
    wrong = (predictor.left_out()[0].argmax(1) != predictor.left_out()[1]).sum()
    assert f"<h2>{wrong} support pictures that were taken for another class" in text or not wrong


def test_a_page_of_drawings_is_dark_on_light_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaml_lightning.evaluation.page.SHOWN", 5)
    predictor, x, names = coloured()
    text = page(predictor, x.numpy(), predictor(x), names, "", ink=True)
    assert "The 7 surer ones are not shown." in text
    first = re.search(r"base64,([^\"]+)\"", text)
    assert first is not None
    least = int(predictor(x).amax(1).argmin())
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(first[1]))))
    np.testing.assert_array_equal(picture, 255 - x[least].permute(1, 2, 0).numpy())
