"""What adaptation costs: passes, products, and how long graphs live."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from tiny_learners import gradients, images, implicit, learner, smooth_conv
from torch import Tensor

from imaml_lightning.adaptation import Implicit
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.advice import outcome
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.problem.curvature import Hessian
from imaml_lightning.problem.objective import InnerObjective, LinearisedObjective
from imaml_lightning.problem.proximal import ProximalTerm


@dataclass(frozen=True)
class Counted(Hessian):
    """The Hessian, with its products counted."""

    count: tuple = ()

    def _product(self, at: LinearisedObjective, u: Tensor) -> Tensor:
        self.count[0].append(u.shape)
        return super()._product(at, u)


def counting(steps: int, products: int) -> tuple[MetaLearner, list, list]:
    """A learner with the lists that its network's forward passes and its Hessian products are noted in."""
    noted: list = []
    adaptation = Implicit(
        GradientDescent(max_steps=steps), ConjugateGradient(products, rtol=0.0), Counted(count=(noted,)), ProximalTerm()
    )
    built, forwards = learner(smooth_conv(), adaptation), []
    built.network.register_forward_hook(lambda *_: forwards.append(1))
    return built, forwards, noted


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("steps", "products"), [(0, 1), (4, 1), (4, 6)])
def test_no_more_passes_than_needed(tasks: int, steps: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built, forwards, noted = counting(steps, products)
    backwards, true_grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or true_grad(*a, **k))
    gradients(built, images(tasks))
    # One for every inner step, one where the gradient is linearised, one on the query set; products add none.
    assert len(forwards) == steps + 2
    assert len(noted) == products
    # Linearising takes two (to the outputs, and from there to φ); the last is the pull-back.
    assert len(backwards) == steps + 2 + products + 1


def test_evaluation_keeps_no_graph_and_needs_no_linear_solve() -> None:
    built, forwards, noted = counting(steps=4, products=3)
    with torch.no_grad():
        adapted = built.adapted(images().support)
    tensors = [adapted.phi, adapted.stationarity, adapted.inner.value, adapted.inner.residual]
    assert not any(t.requires_grad for t in tensors)
    assert adapted.linear is None
    assert (len(forwards), len(noted)) == (5, 0)


def test_what_became_of_a_solve_costs_one_gradient_evaluation() -> None:
    built, forwards, _ = counting(steps=4, products=3)
    objective = built.objective(images().support)
    with torch.no_grad():
        adapted = built.adaptation(objective)
        assert outcome(objective, adapted.linearised).keys() == {"inner_diverged", "inner_growth"}
        assert adapted.inner.residual.isfinite().all()  # of the same linearisation
    assert len(forwards) == 4 + 2


@pytest.mark.parametrize("train", [True, False])
def test_graph_goes_with_its_last_user(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without waiting for the garbage collector, or several chunks' graphs are alive at once.
    points: list[weakref.ref] = []
    linearise = InnerObjective.linearise

    def watched(self: InnerObjective, *arguments: Tensor, **options: bool) -> LinearisedObjective:
        at = linearise(self, *arguments, **options)
        points.append(weakref.ref(at))
        return at

    monkeypatch.setattr(InnerObjective, "linearise", watched)
    built, episode = learner(smooth_conv(), implicit(steps=2)), images()
    gc.collect()
    gc.disable()
    try:
        with torch.set_grad_enabled(train):
            adapted = built.adapted(episode.support)
            loss = built.judge(adapted.phi, episode.query)["loss"].sum()
        if train:
            assert points[0]() is not None
            loss.backward()
        del adapted, loss
        assert points[0]() is None
    finally:
        gc.enable()


def test_prediction_under_inference_mode() -> None:
    built, episode = learner(smooth_conv(norm=True), implicit(steps=10)), images()
    expected = built.predict_step(episode, 0)
    with torch.inference_mode():
        made_here = images()  # as the Trainer's own loaders do
        assert made_here.support.x.is_inference()
        torch.testing.assert_close(built.predict_step(made_here, 0), expected, rtol=0, atol=0)
