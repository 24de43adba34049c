"""Implicit and first-order meta-gradients against routes that share no code with them."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import RAW, dense_meta_gradient, mean_over_tasks, ridge, unrolled_meta_gradient
from tiny_learners import (
    Temperature,
    assert_gradients,
    gradients,
    images,
    implicit,
    learner,
    points,
    problems,
    smooth_conv,
    smooth_mlp,
)
from torch import Tensor, nn

from imaml_lightning.adaptation import FirstOrder
from imaml_lightning.episode import Episode
from imaml_lightning.inner import GradientDescent
from imaml_lightning.problem.curvature import Curvature, GaussNewton, Hessian
from imaml_lightning.problem.proximal import ProximalTerm
from imaml_lightning.problem.solution import Result

HEAD = ["head.weight", "head.bias"]
CASES = {
    "images": lambda: (learner(smooth_conv(), implicit()), images(), None),
    "strength_per_tensor": lambda: (learner(smooth_conv(), implicit(per="tensor")), images(), None),
    "strength_per_parameter": lambda: (learner(smooth_conv(), implicit(per="parameter")), images(), None),
    "batch_norm": lambda: (learner(smooth_conv(norm=True), implicit(strength=3.0, lr=0.1)), images(), None),
    "only_head_adapted": lambda: (learner(smooth_conv(), implicit(per="tensor"), adapt=["head.*"]), images(), HEAD),
    "learned_criterion": lambda: (learner(smooth_conv(), implicit(), Temperature()), images(), None),
    "regression": lambda: (
        learner(smooth_mlp(), implicit(strength=2.0, lr=0.1, steps=250), nn.MSELoss()),
        points(),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_is_that_of_a_dense_solve(case: str) -> None:
    built, episode, adapted = CASES[case]()
    tensors = dict(built.named_parameters())
    expected = mean_over_tasks(lambda p: dense_meta_gradient(p, tensors), problems(built, episode, adapted))
    assert_gradients(gradients(built, episode), expected, rtol=1e-8)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("curvature", "gauss_newton"), [(Hessian(), False), (GaussNewton(), True)])
def test_linear_system_has_the_curvature_asked_for(norm: bool, curvature: Curvature, gauss_newton: bool) -> None:
    # Far from stationary, where the two matrices differ most; the strength keeps the Hessian positive definite.
    built, episode = learner(smooth_conv(norm), implicit(curvature, strength=6.0, steps=2)), images()
    phi = built.adapted(episode.support).phi.detach()
    tensors = dict(built.named_parameters())
    expected, other = (
        mean_over_tasks(
            lambda p, rows=iter(phi), matrix=matrix: dense_meta_gradient(p, tensors, next(rows), matrix),
            problems(built, episode),
        )
        for matrix in (gauss_newton, not gauss_newton)
    )
    assert_gradients(gradients(built, episode), expected, rtol=1e-8)
    with pytest.raises(AssertionError, match="relative error"):
        assert_gradients(other, expected, rtol=1e-4)


@pytest.mark.parametrize("per", ["network", "parameter"])
def test_linear_model_in_closed_form(per: str) -> None:
    episode = points(tasks=2, features=4)
    built = learner(nn.Linear(4, 1, bias=False), implicit(per=per, lr=0.2, steps=150), nn.MSELoss())
    theta, raw = built.network.weight.detach()[0], built.adaptation.proximal.raw.detach()
    strength = torch.log1p(raw.exp()).expand(4)
    (x, y), (xq, yq) = episode
    closed = [ridge((x[i], y[i]), (xq[i], yq[i]), theta, strength) for i in range(2)]
    phi, to_theta, to_strength = (torch.stack(each) for each in zip(*closed, strict=True))

    torch.testing.assert_close(built.adapted(episode.support).phi, phi, rtol=1e-10, atol=1e-12)
    found = gradients(built, episode)
    torch.testing.assert_close(found["network.weight"][0], to_theta.mean(0), rtol=1e-9, atol=1e-12)
    # dλ/dρ of λ = log(1 + e^ρ) is the logistic function.
    to_raw = to_strength.mean(0) * raw.sigmoid()
    torch.testing.assert_close(
        found[RAW], to_raw.sum(0, keepdim=True) if per == "network" else to_raw, rtol=1e-9, atol=1e-12
    )


def test_unrolled_descent_converges_to_the_implicit_gradient() -> None:
    built, episode = learner(smooth_conv(), implicit(per="tensor")), images(tasks=2)
    tensors = dict(built.named_parameters())
    found = gradients(built, episode)
    errors = []
    for steps in (5, 10, 100):
        unrolled = mean_over_tasks(
            lambda p, steps=steps: unrolled_meta_gradient(p, tensors, 0.25, steps), problems(built, episode)
        )
        errors.append(max((found[n] - unrolled[n]).norm() / found[n].norm() for n in found))
    assert errors[0] > 1e-3
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


@pytest.mark.parametrize("per", ["network", "tensor"])
def test_gradcheck_through_both_solves(per: str) -> None:
    built, episode = learner(smooth_conv(), implicit(strength=3.0, per=per, steps=25)), images(tasks=1)
    meta = list(built.parameters())

    def loss(*_: Tensor) -> Tensor:
        # gradcheck moves the parameters in place, where the learner reads them.
        return built.judge(built.adapted(episode.support).phi, episode.query)["loss"]

    assert any(p is built.adaptation.proximal.raw for p in meta)
    assert torch.autograd.gradcheck(loss, meta, atol=1e-7, rtol=1e-5)


def test_chunk_sizes_agree() -> None:
    built, episode = learner(smooth_conv(norm=True), implicit(strength=3.0, lr=0.1, steps=10)), images()
    together = gradients(built, episode, None)
    for size in (1, 2, 3):
        assert_gradients(gradients(built, episode, size), together, rtol=1e-10)


@pytest.mark.parametrize("curvature", [Hessian(), GaussNewton()])
def test_tasks_do_not_touch_each_other(curvature: Curvature) -> None:
    built, episode = learner(smooth_conv(norm=True), implicit(curvature, strength=3.0, lr=0.1, steps=20)), images()
    disturbed = copy.deepcopy(episode)
    disturbed.support.x[1] = images(1, seed=9).support.x[0]

    def solve(episode: Episode) -> tuple[Tensor, Tensor]:
        adapted = built.adapted(episode.support)
        built.judge(adapted.phi, episode.query)["loss"].sum().backward()
        return adapted.phi.detach(), adapted.linear.value

    for before, after in zip(solve(episode), solve(disturbed), strict=True):
        assert not torch.allclose(before[1], after[1], rtol=1e-3)
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("adapt", ["*", "head.*"])
def test_first_order_takes_the_jacobian_as_identity(adapt: str) -> None:
    first = FirstOrder(GradientDescent(lr=0.25, max_steps=7), ProximalTerm(1.5, learn=True))
    built, episode = learner(smooth_conv(), first, adapt=[adapt]), images()
    names = HEAD if adapt == "head.*" else [name for name, _ in built.network.named_parameters()]
    m = {name: p.detach() for name, p in built.named_parameters()}
    phi = built.adapted(episode.support).phi.detach()
    found = gradients(built, episode)
    direct = [
        torch.func.grad(p.outer, argnums=(0, 1))(row, m)
        for p, row in zip(problems(built, episode, names), phi, strict=True)
    ]
    to_theta = torch.cat([found[f"network.{name}"].flatten() for name in names])
    torch.testing.assert_close(to_theta, torch.stack([v for v, _ in direct]).mean(0))
    if adapt == "head.*":
        torch.testing.assert_close(found["network.conv.weight"], sum(d["network.conv.weight"] for _, d in direct) / 3)
    assert built.adaptation.proximal.raw.grad is None


def test_what_is_reported_is_true() -> None:
    built, episode = learner(smooth_conv(), implicit(steps=5)), images()
    adapted = built.adapted(episode.support)
    built.judge(adapted.phi, episode.query)["loss"].sum().backward()
    m = {name: p.detach() for name, p in built.named_parameters()}
    for i, problem in enumerate(problems(built, episode)):
        phi = adapted.phi[i].detach()
        slope = torch.func.grad(problem.inner)(phi, m)
        support = torch.func.grad(problem.loss)(phi, m, problem.support)
        v, matrix = torch.func.grad(problem.outer)(phi, m), torch.func.hessian(problem.inner)(phi, m)
        torch.testing.assert_close(adapted.inner.residual[i], slope.norm())
        torch.testing.assert_close(adapted.stationarity[i], slope.norm() / support.norm())
        torch.testing.assert_close(adapted.linear.value[i], torch.linalg.solve(matrix, v))
    assert adapted.inner.steps.tolist() == [5, 5, 5]
    assert adapted.inner.result.tolist() == [Result.STEP_LIMIT] * 3
    assert adapted.linear.result.tolist() == [Result.CONVERGED] * 3


def test_what_is_not_a_number_is_not_hidden() -> None:
    built, episode = learner(smooth_conv(), implicit(steps=3)), images()
    episode.query.x[1, 0] = torch.nan
    found = gradients(built, episode)
    assert all(found[f"network.{name}"].isnan().all() for name, _ in built.network.named_parameters())


def test_a_task_that_breaks_stays_at_its_last_good_point() -> None:
    built, episode = learner(smooth_conv(), implicit(steps=3)), images()
    sound = built.adapted(episode.support).phi.detach()
    episode.support.x[1, 0] = torch.nan
    adapted = built.adapted(episode.support)
    assert adapted.inner.result.tolist() == [Result.STEP_LIMIT, Result.NONFINITE, Result.STEP_LIMIT]
    torch.testing.assert_close(adapted.phi[1], built.flat.vector())
    torch.testing.assert_close(adapted.phi[[0, 2]], sound[[0, 2]], rtol=1e-13, atol=1e-15)
