"""argmin against dense algebra, finite differences of the whole solve, closed forms, and its own refusals."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import oracles  # noqa: F401 (lets torch's forward mode say once what it deprecates)
import pytest
import torch
from cases import INNER_SOLVERS, LINEAR_SOLVERS
from tiny_learners import learner, points, smooth_mlp
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from imaml_lightning import Implicit, ProximalTerm, Result, UsageError, argmin
from imaml_lightning.inner import LBFGS, BlackBox, GradientDescent, HessianFree, Newton
from imaml_lightning.linear import ConjugateGradient, Dense, Exact, Minres
from imaml_lightning.problem import FiniteDifference, GaussNewton, Hessian, ReleasedCode

F64 = torch.float64
TIGHT = {"inner_solver": Newton(rtol=1e-13), "linear_solver": ConjugateGradient(200, 1e-12)}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y = numbers(20, 4), (numbers(20, seed=1) > 0).double()


@dataclass
class Case:
    """A problem: G of φ and meta, where the solver starts, meta, and G of φ as one vector for the oracle."""

    G: Callable[..., Tensor]
    start: Tensor | dict[str, Tensor]
    meta: tuple[Tensor, ...]
    flat: Callable[..., Tensor]

    def tensors(self) -> list[Tensor]:
        return [m.clone().requires_grad_() for m in self.meta]


def logistic(w: Tensor, log_strength: Tensor, weights: Tensor) -> Tensor:
    losses = binary_cross_entropy_with_logits(X @ w, Y, reduction="none")
    return (weights * losses).mean() + 0.5 * (log_strength.exp() * w.square()).sum()


def small_network(phi: dict[str, Tensor], x: Tensor, strength: Tensor) -> Tensor:
    outputs = torch.tanh(x @ phi["first"]) @ phi["second"] + phi["bias"]
    return (outputs - Y).square().mean() + strength * sum(p.square().sum() for p in phi.values())


def small_network_flat(phi: Tensor, x: Tensor, strength: Tensor) -> Tensor:
    first, second, bias = phi[:12].reshape(4, 3), phi[12:15], phi[15]
    return ((x @ first).tanh() @ second + bias - Y).square().mean() + strength * (phi * phi).sum()


def scalar(phi: Tensor, m: Tensor) -> Tensor:
    return softplus(phi) - m * phi + phi.pow(4) / 12


CASES = {
    "vector": Case(logistic, torch.zeros(4, dtype=F64), (numbers(4, seed=2) - 2, numbers(20, seed=3).exp()), logistic),
    "dict": Case(
        small_network,
        {"first": numbers(4, 3, seed=4), "second": numbers(3, seed=5), "bias": numbers(seed=6)},
        (X + 0.1, torch.tensor(0.05, dtype=F64)),
        small_network_flat,
    ),
    "scalar": Case(scalar, torch.tensor(0.0, dtype=F64), (torch.tensor(0.8, dtype=F64),), lambda p, m: scalar(p[0], m)),
}
#: The same with curvature 1 at least, so that slow solvers arrive as well.
STRONG = Case(logistic, torch.zeros(4, dtype=F64), (torch.zeros(4, dtype=F64), numbers(20, seed=3).exp()), logistic)
each_case = pytest.mark.parametrize("name", CASES)


def flat(phi: Tensor | dict[str, Tensor]) -> Tensor:
    parts = phi.values() if isinstance(phi, dict) else [phi]
    return torch.cat([p.reshape(-1) for p in parts])


def dense(case: Case, phi: Tensor) -> list[Tensor]:
    """∂φ/∂m ``[param, *m]`` at φ ``[param]`` for each m, with every matrix written out."""
    matrix = hessian(case.flat)(phi, *case.meta)
    found = []
    for number in range(len(case.meta)):
        cross = jacrev(grad(case.flat), argnums=number + 1)(phi, *case.meta)
        found.append(-torch.linalg.solve(matrix, cross.reshape(len(phi), -1)).reshape(cross.shape))
    return found


def close(found: Tensor, expected: Tensor, rtol: float = 1e-8) -> None:
    assert (found - expected).norm() <= rtol * expected.norm(), f"{found} is not {expected}"


@each_case
def test_jacobians_are_those_of_dense_algebra(name: str) -> None:
    case, options = CASES[name], {**TIGHT, "inner_solver": LBFGS(max_steps=300, rtol=1e-10)}
    tensors = case.tensors()
    phi, report = argmin(case.G, case.start, *tensors, **options)
    expected = dense(case, flat(phi).detach())
    v = numbers(flat(phi).numel(), seed=9)
    gradients = torch.autograd.grad(flat(phi), tensors, v, retain_graph=True)
    for gradient, jacobian in zip(gradients, expected, strict=True):
        close(gradient, torch.tensordot(v, jacobian, 1))
    assert report.converged
    assert report.linear is not None
    for mode in ("forward", "reverse", None):
        for found, jacobian in zip(report.jacobian(mode), expected, strict=True):
            # A dict of blocks [*φ, *m], the rows of which make the matrix.
            blocks = found.values() if isinstance(found, dict) else [found]
            close(torch.cat([b.reshape(-1, *jacobian.shape[1:]) for b in blocks]), jacobian)


@each_case
def test_gradients_are_those_of_differences_of_the_whole_solve(name: str) -> None:
    case, tensors = CASES[name], CASES[name].tensors()
    start, _ = argmin(case.G, case.start, *case.meta)  # near the one minimiser of several that all solves shall find

    def loss(*meta: Tensor) -> Tensor:
        phi, _ = argmin(case.G, start, *meta, **TIGHT)
        return flat(phi).sin().sum()

    gradients = torch.autograd.grad(loss(*tensors), tensors)
    h = 1e-4
    for number, gradient in enumerate(gradients):
        for entry in range(min(gradient.numel(), 6)):
            around = []
            for step in (-2, -1, 1, 2):
                moved = [m.clone() for m in case.meta]
                moved[number].view(-1)[entry] += step * h
                around.append(loss(*moved))
            # Of fourth order, so that its own error is some 1e-12.
            difference = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * h)
            assert abs(difference - gradient.reshape(-1)[entry]) <= 1e-8 * (1 + gradient.norm())


@pytest.mark.parametrize("solver", [name for name in INNER_SOLVERS if name != "hessian_free"])
def test_every_inner_solver(solver: str) -> None:
    """The gradient is that of the implicit function theorem at φ, wherever the solver left it."""
    case, tensors = STRONG, STRONG.tensors()
    phi, report = argmin(case.G, case.start, *tensors, inner_solver=INNER_SOLVERS[solver], linear_solver=Dense(1e-12))
    assert report.converged, report
    v = numbers(4)
    for gradient, jacobian in zip(torch.autograd.grad(phi, tensors, v), dense(case, phi.detach()), strict=True):
        close(gradient, v @ jacobian)


@pytest.mark.parametrize("solver", [*LINEAR_SOLVERS.values(), Exact()], ids=[*LINEAR_SOLVERS, "exact"])
def test_every_linear_solver(solver) -> None:
    case, tensors = STRONG, STRONG.tensors()
    phi, report = argmin(case.G, case.start, *tensors, inner_solver=Newton(rtol=1e-12), linear_solver=solver)
    phi.sum().backward()
    assert report.linear is not None
    assert report.linear.residual <= 1e-4
    for m, jacobian in zip(tensors, dense(case, phi.detach()), strict=True):
        close(m.grad, jacobian.sum(0), rtol=1e-2)


def test_differences_for_curvature() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    options = {"inner_solver": Newton(rtol=1e-12), "curvature": FiniteDifference(), "linear_solver": Minres(50, 1e-8)}
    phi, _ = argmin(case.G, case.start, *tensors, **options)
    phi.sum().backward()
    close(tensors[0].grad, dense(case, phi.detach())[0].sum(0), rtol=1e-6)


@each_case
def test_forward_mode_is_the_transpose(name: str) -> None:
    case, tensors, options = (
        CASES[name],
        CASES[name].tensors(),
        {**TIGHT, "inner_solver": LBFGS(max_steps=300, rtol=1e-10)},
    )
    phi, report = argmin(case.G, case.start, *tensors, **options)
    tangents = [numbers(*m.shape, seed=11) for m in tensors]
    v = numbers(flat(phi).numel(), seed=12)
    moved = flat(report.jvp(*tangents))
    gradients = torch.autograd.grad(flat(phi), tensors, v)
    backward = sum((t * g).sum() for t, g in zip(tangents, gradients, strict=True))
    assert abs(moved @ v - backward) <= 1e-10 * (1 + abs(backward))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(m.detach(), t) for m, t in zip(tensors, tangents, strict=True)]
        with torch.no_grad():
            again, _ = argmin(case.G, case.start, *duals, **options)
        close(forward_ad.unpack_dual(flat(again)).tangent, moved)


def ridge(m: Tensor) -> Tensor:
    """The minimiser of ‖X φ − m‖² / 2 + Σ exp(mⱼ) φⱼ² / 2 in closed form."""
    return torch.linalg.solve(X.T @ X + torch.diag(m[:4].exp()), X.T @ m)


def ridge_objective(phi: Tensor, m: Tensor) -> Tensor:
    return 0.5 * (X @ phi - m).square().sum() + 0.5 * (m[:4].exp() * phi.square()).sum()


def test_products_with_the_meta_hessian() -> None:
    def loss(m: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        return solve(m).sin().sum() + (m.cos() * solve(m).mean()).sum()

    def ours(m: Tensor) -> Tensor:
        return argmin(ridge_objective, torch.zeros(4, dtype=F64), m, **TIGHT)[0]

    m = numbers(20, seed=5)
    expected = torch.autograd.functional.hessian(lambda m: loss(m, ridge), m)
    found = torch.autograd.functional.hessian(lambda m: loss(m, ours), m)
    close(found, expected)
    close(found, found.T)
    u = numbers(20, seed=6)
    close(torch.autograd.functional.hvp(lambda m: loss(m, ours), m, u)[1], expected @ u)
    # Third derivatives as well, since u is the solution of such a problem itself.
    slopes = [
        torch.autograd.functional.vhp(
            lambda m, solve=solve: (
                torch.autograd.functional.vhp(lambda m: loss(m, solve), m, u, create_graph=True)[1] @ u
            ),
            m,
            u,
        )[1]
        for solve in (ours, ridge)
    ]
    close(*slopes, rtol=1e-6)


def test_torchs_own_jacobian_and_gradcheck() -> None:
    def ours(m: Tensor) -> Tensor:
        return argmin(ridge_objective, torch.zeros(4, dtype=F64), m, **TIGHT)[0]

    m = numbers(20, seed=5).requires_grad_()
    close(torch.autograd.functional.jacobian(ours, m), jacrev(ridge)(m.detach()))
    assert torch.autograd.gradcheck(ours, m, check_forward_ad=True)


def batch(phi: Tensor, targets: Tensor, strength: Tensor) -> Tensor:
    """``[task]`` of φ ``[task, 4]``: targets ``[task, 20]`` of their own, one strength for all."""
    return (phi @ X.T - targets).square().mean(1) + strength * phi.cosh().sum(1)


@pytest.mark.parametrize("solver", [LBFGS(rtol=1e-11), Newton(rtol=1e-12), BlackBox("L-BFGS-B", rtol=1e-7)], ids=repr)
def test_a_batch_is_each_of_its_problems(solver) -> None:
    targets, strength = numbers(3, 20).requires_grad_(), torch.tensor(0.1, dtype=F64, requires_grad=True)
    options = {"inner_solver": solver, "linear_solver": ConjugateGradient(100, 1e-12)}
    start = {"one": numbers(3, 4)}
    phi, report = argmin(lambda p, *m: batch(p["one"], *m), start, targets, strength, batched=True, **options)
    assert report.inner.result.tolist() == [Result.CONVERGED] * 3
    phi["one"].square().sum().backward()
    to_targets, to_strength = targets.grad, strength.grad
    alone, total = torch.zeros_like(targets), torch.zeros_like(strength)
    for i in range(3):
        one, _ = argmin(
            lambda p, *m, i=i: batch(p[None], m[0][i : i + 1], m[1])[0], numbers(3, 4)[i], targets, strength, **options
        )
        gradients = torch.autograd.grad(one.square().sum(), [targets, strength])
        alone, total = alone + gradients[0], total + gradients[1]
        torch.testing.assert_close(one, phi["one"][i], rtol=1e-6, atol=1e-8)
    close(to_targets, alone, rtol=1e-6)
    close(to_strength, total, rtol=1e-6)
    jacobians = report.jacobian("forward"), report.jacobian("reverse")
    for forward, reverse in zip(*jacobians, strict=True):
        close(forward["one"], reverse["one"])
    assert jacobians[0][0]["one"].shape == (3, 4, 3, 20)
    assert not jacobians[0][0]["one"][0, :, 1:].any()  # a problem and the targets of another


def test_a_problem_that_fails_harms_no_other() -> None:
    targets = numbers(3, 20)
    targets[1] = torch.nan
    targets.requires_grad_()
    phi, report = argmin(batch, torch.zeros(3, 4, dtype=F64), targets, torch.tensor(0.1), batched=True)
    assert report.inner.result.tolist() == [Result.CONVERGED, Result.NONFINITE, Result.CONVERGED]
    assert not report.converged
    phi.sum().backward()
    assert targets.grad[[0, 2]].isfinite().all()
    assert "1 NONFINITE" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    x, y = X.to(dtype), Y.to(dtype)
    log_strength = torch.full((4,), -2.0, dtype=dtype, requires_grad=True)

    def G(w: Tensor, log_strength: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(x @ w, y) + 0.5 * (log_strength.exp() * w.square()).sum()

    w, report = argmin(G, torch.zeros(4, dtype=dtype), log_strength, inner_solver=LBFGS(max_steps=100, rtol=1e-4))
    w.sum().backward()
    assert report.converged, report
    assert w.dtype == log_strength.grad.dtype == dtype
    case = Case(
        logistic, CASES["vector"].start, (torch.full((4,), -2.0, dtype=F64), torch.ones(20, dtype=F64)), logistic
    )
    exact, _ = argmin(case.G, case.start, *case.meta, **TIGHT)
    close(log_strength.grad.double(), dense(case, exact)[0].sum(0), rtol=2e-3)


class Penalty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=F64))
        self.frozen = nn.Parameter(torch.ones((), dtype=F64), requires_grad=False)

    def forward(self, phi: Tensor) -> Tensor:
        return 0.5 * self.frozen * (self.strength * phi.square()).sum()


def test_what_G_closes_over_is_found() -> None:
    """A module passed, one closed over, one that is G itself, a parameter, and what is computed from one beforehand."""
    penalty = Penalty()
    start, fit = torch.zeros(4, dtype=F64), lambda phi: 0.5 * (X @ phi - Y).square().sum()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.penalty = penalty

        def forward(self, phi: Tensor) -> Tensor:
            return fit(phi) + self.penalty(phi)

    doubled = penalty.strength * 2
    ways = {
        "passed": lambda: argmin(lambda phi, module: fit(phi) + module(phi), start, penalty, **TIGHT),
        "in_a_dict": lambda: argmin(lambda phi, m: fit(phi) + m["penalty"](phi), start, {"penalty": penalty}, **TIGHT),
        "closed_over": lambda: argmin(lambda phi: fit(phi) + penalty(phi), start, **TIGHT),
        "itself": lambda: argmin(Whole(), start, **TIGHT),
        "a_parameter": lambda: argmin(
            lambda phi: fit(phi) + 0.5 * (penalty.strength * phi.square()).sum(), start, **TIGHT
        ),
        "computed": lambda: argmin(lambda phi: fit(phi) + 0.25 * (doubled * phi.square()).sum(), start, **TIGHT),
        "given": lambda: argmin(
            lambda phi, s: fit(phi) + 0.25 * (s * phi.square()).sum(), start, penalty.strength * 2, **TIGHT
        ),
    }
    matrix = X.T @ X + torch.diag(penalty.strength.detach())
    phi = torch.linalg.solve(matrix, X.T @ Y)
    expected = -phi * torch.linalg.solve(matrix, torch.ones(4, dtype=F64))
    for way, solve in ways.items():
        found, _ = solve()
        (gradient,) = torch.autograd.grad(found.sum(), [penalty.strength], retain_graph=True)
        assert (gradient - expected).norm() <= 1e-9 * expected.norm(), way
        (once_more,) = torch.autograd.grad(found.sum(), [penalty.strength], create_graph=True)
        assert (once_more - expected).norm() <= 1e-9 * expected.norm(), way


def test_found_elsewhere() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    there, _ = argmin(case.G, case.start, *case.meta, **TIGHT)
    phi, report = argmin(case.G, there, *tensors, inner_solver=None, linear_solver=Dense())
    assert report.converged
    assert report.inner.steps.tolist() == [0]
    phi.sum().backward()
    close(tensors[0].grad, dense(case, there)[0].sum(0))
    _, report = argmin(case.G, there + 0.1, *tensors, inner_solver=None)
    assert not report.converged
    residual = grad(case.flat)(there + 0.1, *case.meta).norm()
    close(report.inner.residual, residual.reshape(1))
    _, report = argmin(case.G, there + 0.1, *tensors, inner_solver=None, atol=2 * float(residual))
    assert report.converged


def test_what_did_not_converge_is_said_or_raised() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    few = {"inner_solver": GradientDescent(0.1, 2, 1e-6)}
    phi, report = argmin(case.G, case.start, *tensors, **few)
    assert report.inner.result.tolist() == [Result.STEP_LIMIT]
    assert not report.converged
    assert str(report).startswith("solve: 1 STEP_LIMIT; at most 2 steps")
    close(report.inner.residual, grad(case.flat)(phi.detach(), *case.meta).norm().reshape(1))
    with pytest.raises(UsageError, match=r"the inner problem was not solved: .* STEP_LIMIT"):
        argmin(case.G, case.start, *tensors, **few, strict=True)
    phi, report = argmin(case.G, case.start, *tensors, linear_solver=ConjugateGradient(1, 1e-6), strict=True)
    with pytest.raises(UsageError, match=r"the linear system was not solved: .* STEP_LIMIT"):
        phi.sum().backward()
    phi, report = argmin(case.G, case.start, *tensors, linear_solver=ConjugateGradient(1, 1e-6))
    assert report.converged
    phi.sum().backward()
    assert not report.converged


def test_a_saddle_point_is_reported() -> None:
    m = torch.tensor(1.0, dtype=F64, requires_grad=True)
    options = {"inner_solver": None, "linear_solver": ConjugateGradient()}
    phi, report = argmin(lambda p, m: m * (p[0].square() - 2 * p[1].square()), torch.zeros(2, dtype=F64), m, **options)
    phi[1].backward()
    assert report.linear.result.tolist() == [Result.INDEFINITE]


def test_the_report_keeps_no_graph() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    gc.collect()
    gc.disable()
    try:
        phi, report = argmin(case.G, case.start, *tensors)
        phi.sum().backward()
        assert report.jacobian()[0].shape == (4, 4)
        del phi
        with pytest.raises(UsageError, match="no graph"):  # and so no cycle either
            report.jacobian()
    finally:
        gc.enable()


def test_without_gradients() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    with torch.no_grad():
        phi, report = argmin(case.G, case.start, *tensors, **TIGHT)
    assert not phi.requires_grad
    assert report.converged
    with pytest.raises(UsageError, match="no graph"):
        report.jvp(*tensors)
    assert not argmin(case.G, case.start, *case.meta)[0].requires_grad


def test_what_stands_idle_may_be_allowed_to() -> None:
    idle = torch.ones(2, requires_grad=True)
    phi, report = argmin(
        lambda p, m: (p - Y).square().sum(), torch.zeros(20, dtype=F64), idle, allow_unused=True, linear_solver=Dense()
    )
    phi.sum().backward()
    assert idle.grad is None or not idle.grad.any()
    assert not report.jacobian()[0].any()


def test_implicit_maml_is_a_caller() -> None:
    """θ's gradient through MetaLearner's adaptation and through argmin on the same problem, written out."""
    solvers = GradientDescent(0.1, 250), ConjugateGradient(200, 1e-13)
    built = learner(smooth_mlp(), Implicit(*solvers, Hessian(), ProximalTerm(2.0)), nn.MSELoss())
    episode, network = points(tasks=2), built.network
    theta = dict(network.named_parameters())
    phi, strength = built.adapted(episode.support).phi, built.adaptation.proximal.strength().item()
    expected = torch.autograd.grad(phi.sin().sum(), list(theta.values()))

    def G(phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        def one(phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            distance = sum((p - theta[name]).square().sum() for name, p in phi.items())
            return nn.functional.mse_loss(torch.func.functional_call(network, phi, (x,)), y) + strength / 2 * distance

        return torch.func.vmap(one)(phi, *episode.support)

    start = {name: p.expand(2, *p.shape) for name, p in theta.items()}
    found, _ = argmin(G, start, theta, inner_solver=solvers[0], linear_solver=solvers[1], batched=True)
    loss = sum(p.sin().sum() for p in found.values())
    for gradient, other in zip(torch.autograd.grad(loss, list(theta.values())), expected, strict=True):
        close(gradient, other)


M = torch.ones(4, dtype=F64, requires_grad=True)
START = torch.ones(4, dtype=F64)
REFUSED = {
    "no_scalar": (lambda: argmin(lambda p: p.square(), START), r"G must return one number, .*shape \(4,\)"),
    "no_tensor": (lambda: argmin(lambda p: 1.0, START), "G must return one number, .* returned float"),
    "not_one_each": (
        lambda: argmin(lambda p: p.square().sum(), START, batched=True),
        r"one number for each of 4 problems, .* shape \(\)",
    ),
    "coupled": (
        lambda: argmin(lambda p: (p - p.mean() - M).square() + p.square(), START, batched=True),
        "the first problem of the batch depends on the φ of others",
    ),
    "idle": (
        lambda: argmin(lambda p, m: p.square().sum(), START, {"rate": M}),
        r"meta\[0\]\['rate'\] needs a gradient, but the solution does not depend on it",
    ),
    "without_phi": (lambda: argmin(lambda p, m: m.square().sum(), START, M), "G does not depend on φ"),
    "detached": (lambda: argmin(lambda p: p.detach().square().sum(), START), "G does not depend on φ"),
    "linear": (lambda: argmin(lambda p: p.sum(), START, inner_solver=GradientDescent()), "G is linear in φ"),
    "linear_with_meta": (
        lambda: argmin(lambda p, m: (p * m).sum(), START, M, inner_solver=GradientDescent()),
        "G is linear in φ",
    ),
    "whole_numbers": (lambda: argmin(lambda p: p.sum(), torch.arange(3)), "real floating point numbers"),
    "empty": (lambda: argmin(lambda p: p.sum(), {}), "real floating point numbers"),
    "two_types": (lambda: argmin(lambda p: p["a"].sum(), {"a": START, "b": START.float()}), "make them one type"),
    "no_first_axis": (lambda: argmin(lambda p: p, torch.ones(()), batched=True), "first axis is that of problems"),
    "gauss_newton": (
        lambda: argmin(logistic, START, M, torch.ones(20), curvature=GaussNewton())[0].sum().backward(),
        "GaussNewton needs the outputs of a network",
    ),
    "gauss_newton_exactly": (
        lambda: (
            argmin(logistic, START, M, torch.ones(20), curvature=GaussNewton(), linear_solver=Exact())[0]
            .sum()
            .backward()
        ),
        "GaussNewton needs the outputs of a network",
    ),
    "released": (
        lambda: argmin(logistic, START, M, torch.ones(20), curvature=ReleasedCode())[0].sum().backward(),
        "ReleasedCode needs the outputs of a network",
    ),
    "hessian_free": (
        lambda: argmin(logistic, START, M, torch.ones(20), inner_solver=HessianFree()),
        "GaussNewton needs the outputs of a network, .* use Hessian",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    wrong, sentence = REFUSED[name]
    with pytest.raises(UsageError, match=sentence):
        wrong()


def test_tangents_of_other_shapes_are_refused() -> None:
    case, tensors = CASES["vector"], CASES["vector"].tensors()
    phi, report = argmin(case.G, case.start, *tensors)
    assert phi.requires_grad
    with pytest.raises(UsageError, match="jvp needs 2 tangents"):
        report.jvp(tensors[0])
    with pytest.raises(UsageError, match=r"a tangent is of shape \(20,\), its tensor of \(4,\)"):
        report.jvp(tensors[1], None)
    moved = report.jvp(None, torch.ones(20, dtype=F64))
    close(moved, dense(case, phi.detach())[1].sum(1), rtol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    x, m = X.cuda(), numbers(20).cuda().requires_grad_()

    def G(phi: Tensor, m: Tensor) -> Tensor:
        return 0.5 * (x @ phi - m).square().sum() + 0.5 * phi.square().sum()

    phi, report = argmin(G, torch.zeros(4, dtype=F64, device="cuda"), m, **TIGHT)
    phi.sum().backward()
    assert report.converged
    expected = X @ torch.linalg.solve(X.T @ X + torch.eye(4, dtype=F64), torch.ones(4, dtype=F64))
    close(m.grad.cpu(), expected)
