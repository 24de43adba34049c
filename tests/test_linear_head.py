"""A linear head: exact solves against dense algebra, any number of classes, and the whole meta-gradient by finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from imaml_lightning import Episode, Examples, MetaLearner, ProximalTerm, Result, UsageError
from imaml_lightning.adaptation import FirstOrder, Implicit, Unrolled
from imaml_lightning.inner import LBFGS, Newton
from imaml_lightning.learner.criterion import ByTargets
from imaml_lightning.linear import ConjugateGradient, Exact
from imaml_lightning.models import AnyWay, Conv4, OneHotSquaredError, UnitLength
from imaml_lightning.optimizers import SGD, Learned
from imaml_lightning.problem.curvature import GaussNewton, Hessian, ReleasedCode

WAY, FEATURES = 3, 4
CRITERIA = {
    "cross-entropy": nn.CrossEntropyLoss,
    "sum": lambda: nn.CrossEntropyLoss(reduction="sum"),
    "one-hot": OneHotSquaredError,
    "regression": nn.MSELoss,
    "by targets": ByTargets,
}


def body(norm: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(5, FEATURES), nn.Tanh()]
    return [layers[0], nn.BatchNorm1d(FEATURES), layers[1]] if norm else layers


def learner(
    criterion: str = "cross-entropy", head: nn.Module | None = None, per: str = "network", norm: bool = False, **options
) -> MetaLearner:
    torch.manual_seed(0)
    head = nn.Linear(FEATURES, WAY) if head is None else head
    adaptation = options.pop("adaptation", None) or Implicit(
        Newton(rtol=1e-13), Exact(), Hessian(), ProximalTerm(0.1, per, learn=True)
    )
    inner = CRITERIA[criterion]()
    built = MetaLearner(
        nn.Sequential(*body(norm), UnitLength(), head), adaptation, nn.MSELoss() if criterion == "regression" else None,
        inner, adapt=["*.weight", "*.bias"] if options.pop("everything", False) else [f"{3 + norm}.*"],
    ).double()  # fmt: skip
    with torch.no_grad():
        for raw in built.adaptation.proximal.parameters():
            raw.add_(0.5 * torch.rand(raw.shape, dtype=raw.dtype))
    return built


def episode(criterion: str = "cross-entropy", tasks: int = 2, way: int = WAY, shot: int = 2) -> Episode:
    g = torch.Generator().manual_seed(3)

    def draw(count: int) -> Examples:
        x = torch.randn(tasks, way * count, 5, generator=g, dtype=torch.float64)
        if criterion == "regression":
            return Examples(x, torch.randn(tasks, way * count, WAY, generator=g, dtype=torch.float64))
        return Examples(x, torch.arange(way).repeat(tasks, count))

    return Episode(draw(shot), draw(3))


def padded(part: Examples) -> Examples:
    y = part.y.clone()
    y[0, -1] = torch.nan if y.is_floating_point() else -100
    return Examples(part.x, y)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_inverse_is_that_of_the_dense_hessian(criterion: str, per: str, bias: bool) -> None:
    built = learner(criterion, nn.Linear(FEATURES, WAY, bias=bias), per)
    support = padded(episode(criterion).support)
    objective = built.objective(support)
    phi = objective.start() + torch.randn(2, objective.theta.numel(), dtype=torch.float64)
    at = objective.linearise(phi)
    v = torch.randn_like(phi)
    found = at.inverse(damping=0.3)(v)
    for task in range(2):
        alone = objective.task(task)
        real = alone.support.real()[0]

        def value(row: Tensor, alone=alone, real=real) -> Tensor:
            weight = row[: FEATURES * WAY].view(WAY, FEATURES)
            z = alone.support.x[0][real] @ weight.T + (row[FEATURES * WAY :] if bias else 0)
            return built.support_criterion(z, alone.support.y[0][real]) + alone.proximal(row[None], alone.theta)[0]

        dense = torch.func.jacrev(torch.func.grad(value))(phi[task]) + 0.3 * torch.eye(
            len(phi[task]), dtype=torch.float64
        )
        torch.testing.assert_close(found[task], torch.linalg.solve(dense, v[task]), rtol=1e-9, atol=1e-11)
    for curvature in (Hessian(0.3), GaussNewton(0.3)):
        torch.testing.assert_close(curvature.product(at, found), v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_newton_finds_the_minimiser_that_lbfgs_finds(criterion: str) -> None:
    objective = learner(criterion).objective(episode(criterion).support)
    with torch.no_grad():
        found = Newton(rtol=1e-11).minimise(objective, objective.start())
        other = LBFGS(max_steps=500, rtol=1e-11).minimise(objective, objective.start())
    assert (found.result == Result.CONVERGED).all()
    torch.testing.assert_close(found.value, other.value, rtol=1e-7, atol=1e-8)
    assert (found.steps <= (1 if criterion in ("one-hot", "regression") else 10)).all()


@pytest.mark.parametrize("criterion", ["cross-entropy", "one-hot", "regression"])
@pytest.mark.parametrize("per", ["network", "tensor", "parameter"])
def test_the_meta_gradient_is_that_of_the_whole_pipeline_by_finite_differences(criterion: str, per: str) -> None:
    """Body with batch normalisation in training mode, head, λ and the targets' size; the solves are made anew each time."""
    built = learner(criterion, per=per, norm=True)
    tasks = episode(criterion)

    def outer() -> Tensor:
        shared = built.features(tasks)
        return built.judge_on(built.adaptation(built.objective_on(shared.support)).phi, shared.query)["loss"].mean()

    built.zero_grad()
    outer().backward()
    checked = 0
    for parameter in built.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in {0, len(flat) // 2, len(flat) - 1}:
            value, h = flat[index].item(), 1e-5
            losses = []
            for sign in (1, -1):
                flat[index] = value + sign * h
                losses.append(outer().item())
            flat[index] = value
            assert gradient[index].item() == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-6, abs=1e-8)
            checked += 1
    assert checked >= 12


def test_a_head_for_any_number_of_classes_is_one_of_that_many_that_starts_at_zero() -> None:
    free = learner(head=AnyWay(FEATURES), per="tensor")
    for way in (2, 5):
        fixed = learner(head=nn.Linear(FEATURES, way, bias=False), per="tensor")
        nn.init.zeros_(fixed.network[-1].weight)
        fixed.load_state_dict({k: v for k, v in free.state_dict().items() if k != "network.3.weight"}, strict=False)
        tasks = episode(way=way)
        for built in (free, fixed):
            built.zero_grad()
            built.judge(built.adapted(tasks.support).phi, tasks.query)["loss"].sum().backward()
        torch.testing.assert_close(free.network[0].weight.grad, fixed.network[0].weight.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            free.adaptation.proximal.raw.grad, fixed.adaptation.proximal.raw.grad, rtol=1e-9, atol=1e-12
        )


def test_a_learned_start_is_one_vector_for_all_classes() -> None:
    unrolled = Unrolled(SGD(0.5), steps=2, learned=[Learned("lr", "parameter")])
    built = learner("one-hot", AnyWay(FEATURES, learn_start=True), adaptation=unrolled)
    assert built.flat.names == ["3.weight"]
    built.criterion = OneHotSquaredError(learn=False).double()  # cross-entropy does not see what all classes share
    tasks = episode(way=4)
    loss = lambda: built.judge(built.adapted(tasks.support).phi, tasks.query)["loss"].mean()  # noqa: E731
    loss().backward()
    weight = built.network[-1].weight
    moved = []
    for sign in (1, -1):
        other = copy.deepcopy(built)
        with torch.no_grad():
            other.network[-1].weight[0, 1] += sign * 1e-5
            other.flat = built.flat.__class__(other.network, ["3.*"])
            other.cut = built.cut.__class__(other.flat)
        moved.append(other.judge(other.adapted(tasks.support).phi, tasks.query)["loss"].mean().item())
    assert weight.grad[0, 1].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-6)


def test_float32_solves_are_certified() -> None:
    torch.manual_seed(0)
    network = Conv4(any_way=True, filters=8, norm="running", pools=3, unit_length=True)
    for criterion in (None, OneHotSquaredError()):
        adaptation = Implicit(Newton(), Exact(), proximal=ProximalTerm(0.01))
        built = MetaLearner(network, adaptation, support_criterion=criterion, adapt=["head.*"])
        assert built.protocol == "inductive"
        adapted = built.adapted(Examples(torch.rand(3, 40, 1, 28, 28), torch.arange(20).repeat(3, 2)))
        adapted.phi.square().sum().backward()
        assert (adapted.inner.result == Result.CONVERGED).all()
        assert (adapted.stationarity <= 1e-4).all()
        assert (adapted.linear.result == Result.CONVERGED).all()


@pytest.mark.parametrize("per", ["network", "tensor"])
@pytest.mark.parametrize("strength", [1e-2, 1e-4])
def test_a_small_strength_costs_float32_no_digits(strength: float, per: str) -> None:
    """Against a dense solve in float64; 5 examples of 40 features, as of sinusoids, so H + λI has a condition number to 1e7."""
    g = torch.Generator().manual_seed(0)
    support = Examples(3 * torch.randn(4, 5, 40, generator=g).relu(), 3 * torch.randn(4, 5, 1, generator=g))
    adaptation = Implicit(Newton(), Exact(), proximal=ProximalTerm(strength, per))
    built = MetaLearner(nn.Linear(40, 1), adaptation, nn.MSELoss(reduction="sum"))
    objective = built.objective(support)
    found = Newton().minimise(objective, objective.start())
    assert (found.result == Result.CONVERGED).all()
    assert (found.steps == 1).all()
    x = torch.cat([support.x, torch.ones(4, 5, 1)], 2).double()
    dense = 2 * x.mT @ x + strength * torch.eye(41, dtype=torch.float64)
    v = torch.randn(4, 41, generator=g)
    u, expected = objective.linearise(found.value).inverse()(v), torch.linalg.solve(dense, v.double())
    assert ((u - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()


def test_the_inverse_is_the_same_under_autocast() -> None:
    g = torch.Generator().manual_seed(0)
    support = Examples(torch.randn(4, 5, 40, generator=g), torch.randn(4, 5, 1, generator=g))
    objective = MetaLearner(nn.Linear(40, 1), criterion=nn.MSELoss()).objective(support)
    v = torch.randn(4, 41, generator=g)
    expected = objective.linearise(objective.start()).inverse()(v)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.linearise(objective.start()).inverse()(v)
    torch.testing.assert_close(found, expected)


def test_solvers_that_need_a_closed_form_say_so() -> None:
    support = episode().support
    for built, words in [
        (learner(everything=True), "a linear head alone"),
        (learner(adaptation=Implicit(LBFGS(), Exact(), ReleasedCode())), "has no exact inverse"),
    ]:
        with pytest.raises(UsageError, match=words):
            built.adapted(support).phi.sum().backward()
    unknown = learner()
    unknown.support_criterion = nn.NLLLoss()
    with pytest.raises(UsageError, match="NLLLoss"):
        unknown.adapted(support)
    with pytest.raises(UsageError, match="closed form"):
        Exact().solve(lambda u: 2 * u, torch.ones(1, 2))


def test_running_statistics_among_what_is_adapted_are_refused() -> None:
    with pytest.raises(UsageError, match=r"BatchNorm2d body.0.norm keeps running statistics"):
        MetaLearner(Conv4(norm="running"))
    MetaLearner(Conv4(norm=["running", "running", "running", "batch"]), adapt=["body.3.*", "head.*"])


def test_first_order_and_any_linear_solver_work_on_it() -> None:
    tasks = episode()
    exact = learner()
    by_cg = copy.deepcopy(exact)
    by_cg.adaptation.linear_solver = ConjugateGradient(100, 1e-13)
    for built in (exact, by_cg):
        built.judge(built.adapted(tasks.support).phi, tasks.query)["loss"].sum().backward()
    torch.testing.assert_close(by_cg.network[0].weight.grad, exact.network[0].weight.grad, rtol=1e-8, atol=1e-11)
    first = learner(adaptation=FirstOrder(Newton(), ProximalTerm(0.1)))
    first.judge(first.adapted(tasks.support).phi, tasks.query)["loss"].sum().backward()
    assert first.network[0].weight.grad.abs().sum() > 0
