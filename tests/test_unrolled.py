"""Unrolled adaptations against loops written a second time, finite differences, and each other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from oracles import RAW, Named, Problem, mean_over_tasks, ridge, unrolled_meta_gradient
from tiny_learners import (
    Temperature,
    assert_gradients,
    gradients,
    images,
    learner,
    points,
    problems,
    smooth_conv,
    smooth_mlp,
)
from torch import Tensor, nn

from imaml_lightning.adaptation import FirstOrder, MAMLPlusPlus, Reptile, Unrolled
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.optimizers import SGD, Adam, CoordinateWise, Learned, RMSprop
from imaml_lightning.problem.proximal import NoProximalTerm, ProximalTerm

HEAD = ["head.weight", "head.bias"]
LR = 0.3


def unrolled(**options) -> Unrolled:
    return Unrolled(**{"optimizer": SGD(LR), "steps": 5, "proximal": ProximalTerm(1.5, learn=True)} | options)


def named_gradients(loss: Tensor, m: Named) -> Named:
    slopes = torch.autograd.grad(loss, list(m.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(m, slopes, strict=True))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    ("network", "criterion", "adapt"),
    [
        (smooth_conv, None, None),
        (lambda: smooth_conv(norm=True), None, None),
        (smooth_conv, Temperature, None),
        (smooth_conv, None, HEAD),
    ],
)
def test_meta_gradient_is_that_of_a_plain_loop(
    checkpoint: bool, network: Callable, criterion: Callable | None, adapt: Sequence[str] | None
) -> None:
    built = learner(network(), unrolled(checkpoint=checkpoint), criterion and criterion(), adapt=adapt or ["*"])
    episode = images()
    tensors = dict(built.named_parameters())
    expected = mean_over_tasks(lambda p: unrolled_meta_gradient(p, tensors, LR, 5), problems(built, episode, adapt))
    assert_gradients(gradients(built, episode), expected, rtol=1e-10)


def test_one_step_of_maml_by_torch_func() -> None:
    built, episode = learner_without_strength(Unrolled(SGD(LR), steps=1)), points(tasks=1)
    problem = problems_without_strength(built, episode)[0]

    def outer(theta: Tensor) -> Tensor:
        phi = theta - LR * torch.func.grad(problem)(theta, episode.support)
        return problem(phi, episode.query)

    expected = torch.func.grad(outer)(built.flat.vector().detach())
    gradients(built, episode)
    found = torch.cat([p.grad.flatten() for p in built.network.parameters()])
    torch.testing.assert_close(found, expected)


def learner_without_strength(adaptation: Unrolled) -> MetaLearner:
    torch.manual_seed(0)
    return MetaLearner(smooth_mlp(), adaptation, nn.MSELoss()).double()


def problems_without_strength(built: MetaLearner, episode: Episode) -> list[Callable]:
    def loss_of(task: int) -> Callable[[Tensor, Examples], Tensor]:
        def loss(phi: Tensor, examples: Examples) -> Tensor:
            w1, b1, w2, b2 = phi.split([10, 5, 5, 1])
            hidden = torch.log1p(torch.exp(examples.x[task] @ w1.view(5, 2).T + b1))
            return (hidden @ w2.view(1, 5).T + b2 - examples.y[task]).square().mean()

        return loss

    return [loss_of(task) for task in range(episode.tasks)]


@pytest.mark.parametrize("exact", [0, 2, 5, None])
def test_truncation_takes_the_first_steps_as_constants(exact: int | None) -> None:
    built, episode = learner(smooth_conv(), unrolled(backward_steps=exact)), images()
    tensors = dict(built.named_parameters())

    def cut(problem: Problem) -> Named:
        m = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        phi = problem.theta(m)
        for step in range(5):
            kept = exact is None or step >= 5 - exact
            (slope,) = torch.autograd.grad(problem.inner(phi, m), phi, create_graph=True)
            phi = phi - LR * (slope if kept else slope.detach())
        return named_gradients(problem.outer(phi, m), m)

    expected = mean_over_tasks(cut, problems(built, episode))
    if exact == 0:
        assert not expected.pop(RAW).any()
        found = gradients(built, episode)
        assert not found.pop(RAW).any()
        for name, wanted in expected.items():
            torch.testing.assert_close(found[name], wanted)
    else:
        assert_gradients(gradients(built, episode), expected, rtol=1e-10)


def test_no_exact_step_is_first_order_adaptation() -> None:
    first = FirstOrder(GradientDescent(lr=LR, max_steps=5), ProximalTerm(1.5))
    both = [learner(smooth_conv(), each) for each in (first, unrolled(backward_steps=0, proximal=ProximalTerm(1.5)))]
    found, expected = (gradients(built, images()) for built in both)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted)


LEARNED = {
    "rate_per_step_and_tensor": lambda: Unrolled(SGD(LR, momentum=0.5), 4, learned=[Learned("lr", "tensor", True)]),
    "meta_sgd": lambda: Unrolled(SGD(LR), 3, learned=[Learned("lr", "parameter", domain="real")]),
    "adam": lambda: Unrolled(Adam(0.05), 4, learned=[Learned("lr"), Learned("beta1", "tensor"), Learned("eps")]),
    "rmsprop": lambda: Unrolled(RMSprop(0.05, momentum=0.2), 3, learned=[Learned("alpha"), Learned("momentum")]),
    "learned_rule": lambda: Unrolled(perturbed(CoordinateWise(LR, hidden=3)), 3),
}


def perturbed(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return module


@pytest.mark.parametrize("case", LEARNED)
def test_learned_inner_loops_against_finite_differences(case: str) -> None:
    built, episode = learner_without_strength(LEARNED[case]()), points(tasks=2)
    meta = list(built.parameters())
    assert len(meta) > 4

    def loss(*_: Tensor) -> Tensor:
        # gradcheck moves the parameters in place, where the learner reads them.
        return built.judge(built.adapted(episode.support).phi, episode.query)["loss"]

    assert torch.autograd.gradcheck(loss, meta, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", LEARNED)
@pytest.mark.parametrize("exact", [None, 2])
def test_checkpointing_changes_nothing(case: str, exact: int | None) -> None:
    found = []
    for checkpoint in (False, True):
        adaptation = LEARNED[case]()
        adaptation.checkpoint, adaptation.backward_steps = checkpoint, exact
        torch.manual_seed(0)
        built = learner_without_strength(adaptation)
        found.append(gradients(built, points(tasks=2), chunk=1))
    assert found[0].keys() == found[1].keys()
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-10, atol=1e-13)


class Kept:
    """A tensor that some graph keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved(adaptation: Unrolled) -> int:
    """Numbers that the graph of an adapted φ keeps."""
    built, kept = learner_without_strength(adaptation), weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept.add(held := Kept(tensor))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        adapted = built.adapted(points(tasks=1).support)
    assert adapted.phi.requires_grad
    return sum(held.tensor.numel() for held in kept)


def test_what_the_graph_keeps() -> None:
    one, four, sixteen, many = (saved(Unrolled(SGD(LR), steps)) for steps in (1, 4, 16, 64))
    assert sixteen - four == pytest.approx(4 * (four - one), rel=0.01)  # the same for every step
    assert {saved(Unrolled(SGD(LR), steps, backward_steps=0)) for steps in (1, 64)} == {0}
    cut = {saved(Unrolled(SGD(LR), steps, backward_steps=4)) for steps in (16, 64)}
    assert cut == {four}
    few, more = (saved(Unrolled(SGD(LR), steps, checkpoint=True)) for steps in (16, 64))
    assert more < 2.2 * few  # √(64/16) = 2
    assert more < many / 10


def test_long_unrolling_of_a_convex_problem_is_implicit() -> None:
    episode = points(tasks=2, features=4)
    adaptation = Unrolled(SGD(0.2), steps=200, proximal=ProximalTerm(1.0, "parameter", learn=True))
    built = learner(nn.Linear(4, 1, bias=False), adaptation, nn.MSELoss())
    theta, raw = built.network.weight.detach()[0], built.adaptation.proximal.raw.detach()
    (x, y), (xq, yq) = episode
    closed = [ridge((x[i], y[i]), (xq[i], yq[i]), theta, torch.log1p(raw.exp())) for i in range(2)]
    _, to_theta, to_strength = (torch.stack(each).mean(0) for each in zip(*closed, strict=True))
    found = gradients(built, episode)
    torch.testing.assert_close(found["network.weight"][0], to_theta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[RAW], to_strength * raw.sigmoid(), rtol=1e-9, atol=1e-12)


def test_evaluation_takes_its_own_number_of_steps_and_certifies_its_phi() -> None:
    built, episode = learner_without_strength(Unrolled(SGD(0.05), steps=2, eval_steps=7)), points(tasks=2)
    with torch.no_grad():
        adapted = built.adapted(episode.support)
    for i, loss in enumerate(problems_without_strength(built, episode)):
        phi = built.flat.vector().detach()
        for _ in range(7):
            phi = phi - 0.05 * torch.func.grad(loss)(phi, episode.support)
        torch.testing.assert_close(adapted.phi[i], phi)
        torch.testing.assert_close(adapted.inner.residual[i], torch.func.grad(loss)(phi, episode.support).norm())
    assert adapted.inner.steps.tolist() == [7, 7]
    assert adapted.stationarity.tolist() == [1, 1]  # no regulariser
    assert built.adapted(episode.support).inner.steps.tolist() == [2, 2]


def outer_loss(built: MetaLearner, episode: Episode) -> tuple[Tensor, Tensor]:
    """The outer loss and the loss at φ, ``[task]`` each."""
    objective = built.objective(episode.support)
    adapted = built.adaptation(objective)
    loss = built.judge(adapted.phi, episode.query)["loss"]
    return built.adaptation.outer_loss(adapted, loss, objective, objective.on(episode.query, built.criterion)), loss


@pytest.mark.parametrize(("meta_steps", "weights"), [(0, [1 / 3] * 3), (5, [1 / 6, 1 / 6, 2 / 3]), (10, [0, 0, 1])])
def test_multi_step_loss(meta_steps: int, weights: list[float]) -> None:
    built, episode = learner_without_strength(MAMLPlusPlus(SGD(0.05), 3, multi_step_until=10)), points(tasks=2)
    built.adaptation.meta_steps += meta_steps
    loss, _ = outer_loss(built, episode)
    for i, of in enumerate(problems_without_strength(built, episode)):
        phi, expected = built.flat.vector().detach(), 0
        for weight in weights:
            phi = phi - 0.05 * torch.func.grad(of)(phi, episode.support)
            expected = expected + weight * of(phi, episode.query)
        torch.testing.assert_close(loss[i].detach(), expected)


def test_derivatives_begin_first_order() -> None:
    def found(**options) -> dict[str, Tensor]:
        adaptation = MAMLPlusPlus(SGD(LR), 3, multi_step_until=0, **options)
        return gradients(learner_without_strength(adaptation), points())

    def expected(exact: int) -> dict[str, Tensor]:
        learned = [Learned("lr", "tensor", per_step=True)]
        return gradients(learner_without_strength(Unrolled(SGD(LR), 3, None, exact, learned=learned)), points())

    for options, exact in (({"first_order_until": 1}, 0), ({}, 3)):
        for (name, one), other in zip(found(**options).items(), expected(exact).values(), strict=True):
            torch.testing.assert_close(one, other, msg=name)


def test_reptile_moves_theta_towards_the_end_of_descent_on_small_batches() -> None:
    built = learner_without_strength(Reptile(SGD(0.05), steps=4, eval_steps=2, batch=5))
    episode = points(tasks=2)  # 6 + 9 examples: three small batches of 5
    outer_loss(built, episode)[0].sum().backward()
    found = torch.cat([p.grad.flatten() for p in built.network.parameters()])
    theta, ends = built.flat.vector().detach(), []
    for i, loss in enumerate(problems_without_strength(built, episode)):
        x, y = (torch.cat([a[i], b[i]]) for a, b in zip(*episode, strict=True))
        phi = theta
        for number in (0, 1, 2, 0):
            batch = Examples(*(torch.stack([part[number::3]] * 2) for part in (x, y)))
            phi = phi - 0.05 * torch.func.grad(loss)(phi, batch)
        ends.append(phi)
    torch.testing.assert_close(found, sum(theta - phi for phi in ends))


def test_moments_of_the_outer_optimizer_start_the_inner_one() -> None:
    adaptation = Unrolled(Adam(0.05), steps=2, outer_moments=True)
    built, episode = learner_without_strength(adaptation), points(tasks=1)
    outer = torch.optim.Adam(built.parameters(), 0.01)
    for _ in range(3):
        gradients(built, episode)
        outer.step()
        adaptation.after_outer_step(built.flat, outer)
    phi = built.adapted(episode.support).phi[0].detach()
    # Torch's own Adam goes on from the state of the outer one.
    (loss,) = problems_without_strength(built, episode)
    outer.param_groups[0]["lr"] = 0.05
    for _ in range(2):
        slope, first = torch.func.grad(loss)(built.flat.vector().detach(), episode.support), 0
        for p in built.network.parameters():
            p.grad = slope[first : first + p.numel()].view_as(p)
            first += p.numel()
        outer.step()
    torch.testing.assert_close(phi, built.flat.vector().detach(), rtol=1e-12, atol=1e-12)
    assert {"adaptation.outer_exp_avg", "adaptation.outer_exp_avg_sq"} <= set(built.state_dict())
    with pytest.raises(UsageError, match="exp_avg"):
        adaptation.after_outer_step(built.flat, torch.optim.SGD(built.parameters(), 0.1))


def test_learned_support_loss_gets_its_gradient() -> None:
    torch.manual_seed(0)
    episode = points(tasks=2)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return self.scale * (z - y).square().mean()

    built = MetaLearner(smooth_mlp(), Unrolled(SGD(LR), 2), nn.MSELoss(), support_criterion=Scaled()).double()
    found = gradients(built, episode)["support_criterion.scale"]
    # The step is LR · scale, so d/dscale = (LR/scale) d/dLR … by finite differences of the whole.
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            built.support_criterion.scale.fill_(0.7 + sign * 1e-6)
        losses.append(built.judge(built.adapted(episode.support).phi, episode.query)["loss"].mean().item())
    assert found.item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6)


def test_no_proximal_term_is_zero_with_derivatives() -> None:
    term, phi, theta = NoProximalTerm(), torch.randn(2, 3, requires_grad=True), torch.randn(3)
    assert not term(phi, theta).any()
    assert not torch.autograd.grad(term(phi, theta).sum(), phi, create_graph=True)[0].any()
    assert term.strength().tolist() == [0]
    assert not list(term.parameters())
    assert not term.state_dict()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Unrolled(steps=0), "steps"),
        (lambda: Unrolled(eval_steps=0), "eval_steps"),
        (lambda: Unrolled(backward_steps=-1), "backward_steps"),
        (lambda: Unrolled(learned=[Learned("lr"), Learned("lr")]), "learned"),
        (lambda: Unrolled(CoordinateWise(), outer_moments=True), "outer_moments"),
        (lambda: MAMLPlusPlus(first_order_until=-1), "first_order_until"),
        (lambda: Reptile(batch=0), "batch"),
    ],
)
def test_refusals_name_the_option(build: Callable, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        build()
