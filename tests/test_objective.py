"""InnerObjective: its value, gradient and linearisation against the same problem written a second time."""

from __future__ import annotations

import pytest
import torch
from oracles import RAW
from tiny_learners import Temperature, images, implicit, learner, points, problems, smooth_conv, smooth_mlp
from torch import Tensor, nn

from imaml_lightning.episode import Episode
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.problem.network import per_task
from imaml_lightning.problem.objective import InnerObjective

CASES = {
    "images": (lambda: learner(smooth_conv(), implicit(per="tensor")), images),
    "batch_norm": (lambda: learner(smooth_conv(norm=True), implicit(per="parameter")), images),
    "learned_criterion": (lambda: learner(smooth_conv(), implicit(), Temperature()), images),
    "regression": (lambda: learner(smooth_mlp(), implicit(), nn.MSELoss()), points),
}


def objective(built: MetaLearner, episode: Episode) -> InnerObjective:
    return InnerObjective(built.flat, episode.support, built.flat.vector(), built.adaptation.proximal, built.criterion)


def away(start: Tensor) -> Tensor:
    """Points unlike for every task, not at θ, where the regulariser vanishes."""
    return start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3), dtype=start.dtype)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives(case: str, tasks: int) -> None:
    make, draw = CASES[case]
    built, episode = make(), draw(tasks)
    inner = objective(built, episode)
    phi = away(inner.start())
    value, gradient = inner.value_and_gradient(phi)
    at = inner.linearise(phi)
    assert not value.requires_grad
    assert not gradient.requires_grad
    m = {name: p.detach() for name, p in built.named_parameters()}
    for i, problem in enumerate(problems(built, episode)):
        row = phi[i]
        slope = torch.func.grad(problem.inner)(row, m)
        support = torch.func.grad(problem.loss)(row, m, problem.support)
        torch.testing.assert_close(value[i], problem.inner(row, m))
        torch.testing.assert_close(inner.support_loss(phi)[i], problem.loss(row, m, problem.support))
        torch.testing.assert_close(gradient[i], slope)
        torch.testing.assert_close(at.gradient[i], slope)
        torch.testing.assert_close(at.loss.gradient[i], support)
        torch.testing.assert_close(at.proximal_gradient[i], slope - support)
        torch.testing.assert_close(at.loss.outputs[i], problem.outputs(row, m, problem.support[0]))
        torch.testing.assert_close(at.stationarity()[i], slope.norm() / support.norm())


def test_linearised_gradient_is_differentiable_in_everything_it_depends_on() -> None:
    built = learner(smooth_conv(), implicit(per="tensor"), Temperature(), adapt=["head.*"])
    inner = objective(built, images())
    at = inner.linearise(away(inner.start()))
    depends = inner.dependencies()
    shared = {id(p) for name, p in built.named_parameters() if "conv" in name or "log_rate" in name or name == RAW}
    assert {id(t) for t in depends} == {id(inner.theta)} | shared
    pulled = torch.autograd.grad(at.gradient.sum(), [*depends, at.phi])
    assert all(g.abs().sum() > 0 for g in pulled)


def test_what_is_fixed_is_no_dependency() -> None:
    built = learner(smooth_conv(), implicit())
    built.adaptation.proximal.raw.requires_grad_(False)
    inner = objective(built, images())
    assert [id(t) for t in inner.dependencies()] == [id(inner.theta)]


def test_works_without_gradients_around_it() -> None:
    built = learner(smooth_conv(), implicit())
    inner = objective(built, images())
    phi = away(inner.start())
    expected = inner.value_and_gradient(phi)[1]
    with torch.no_grad():
        torch.testing.assert_close(inner.value_and_gradient(phi)[1], expected)
        torch.testing.assert_close(inner.linearise(phi).gradient.detach(), expected)


def test_start_is_theta_for_every_task_without_its_graph() -> None:
    built = learner(smooth_conv(), implicit())
    start = objective(built, images()).start()
    assert start.shape == (3, sum(built.flat.sizes))
    assert not start.requires_grad
    assert (start == built.flat.vector()).all()


def test_random_layers_draw_for_each_task() -> None:
    drop = nn.Dropout(0.5)
    out = per_task(lambda x, y: drop(x) + y, torch.ones(2, 1000), torch.zeros(2, 1000))
    assert not torch.equal(out[0], out[1])
