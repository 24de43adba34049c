"""Differentiable optimizers against torch.optim, finite differences and, where installed, higher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    CoordinateWise,
    DifferentiableOptimizer,
    Learned,
    RMSprop,
    Rprop,
)
from imaml_lightning.problem.network import FlatNetwork

# The product's rule, torch's with the same hyper-parameters.
RULES = {
    "sgd": (SGD(0.05, weight_decay=0.1), torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (
        SGD(0.05, momentum=0.9, dampening=0.3),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
    ),
    "nesterov": (
        SGD(0.05, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (
        Adam(0.05, 0.8, 0.95, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
    "amsgrad": (
        Adam(0.05, beta2=0.5, amsgrad=True),
        torch.optim.Adam,
        {"lr": 0.05, "betas": (0.9, 0.5), "amsgrad": True},
    ),
    "adamw": (AdamW(0.05, weight_decay=0.2), torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.2}),
    "adagrad": (
        Adagrad(0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2),
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2},
    ),
    "rmsprop": (
        RMSprop(0.02, alpha=0.9, weight_decay=0.1),
        torch.optim.RMSprop,
        {"lr": 0.02, "alpha": 0.9, "weight_decay": 0.1},
    ),
    "rmsprop_centered_momentum": (
        RMSprop(0.02, momentum=0.5, centered=True),
        torch.optim.RMSprop,
        {"lr": 0.02, "momentum": 0.5, "centered": True},
    ),
    "adadelta": (Adadelta(0.9, weight_decay=0.1), torch.optim.Adadelta, {"lr": 0.9, "weight_decay": 0.1}),
    "adamax": (Adamax(0.02, weight_decay=0.1), torch.optim.Adamax, {"lr": 0.02, "weight_decay": 0.1}),
    "asgd": (
        ASGD(0.1, lambd=0.05, t0=3, weight_decay=0.1),
        torch.optim.ASGD,
        {"lr": 0.1, "lambd": 0.05, "t0": 3, "weight_decay": 0.1},
    ),
    "rprop": (Rprop(0.05), torch.optim.Rprop, {"lr": 0.05}),
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """torch.optim.ASGD rounds its rate to the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loss(phi: Tensor) -> Tensor:
    """A smooth, curved function of each row ``[task, 4]``, whose gradients turn signs on the way."""
    scale = torch.tensor([1.0, 3.0, 0.2, 0.0])  # nothing depends on the last coordinate
    return (scale * (phi - 0.3).square() + 0.1 * scale * torch.sin(5 * phi)).sum(1)


def slope(phi: Tensor) -> Tensor:
    scale = torch.tensor([1.0, 3.0, 0.2, 0.0])
    return scale * (2 * (phi - 0.3) + 0.5 * torch.cos(5 * phi))


def walk(rule: DifferentiableOptimizer, phi: Tensor, steps: int) -> Tensor:
    state = rule.start(phi)
    for step in range(1, steps + 1):
        phi, state = rule.update(phi, slope(phi), state, step)
    return phi


def begin() -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_are_those_of_torch(rule: str) -> None:
    ours, kind, options = RULES[rule]
    parameter = nn.Parameter(begin())
    theirs = kind([parameter], **options)
    for _ in range(10):
        theirs.zero_grad()
        loss(parameter).sum().backward()
        theirs.step()
    torch.testing.assert_close(walk(ours, begin(), 10), parameter.detach(), rtol=1e-12, atol=1e-12)
    if rule == "asgd":
        state = ours.start(begin())
        phi = begin()
        for step in range(1, 11):
            phi, state = ours.update(phi, slope(phi), state, step)
        torch.testing.assert_close(state["ax"], theirs.state[parameter]["ax"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck_in_the_start_and_every_hyperparameter(rule: str) -> None:
    ours = RULES[rule][0]
    # Those that are off, thresholds, and eps, of which finite differences are too coarse, are left out.
    left_out = ("t0", "eps", "step_size_min", "step_size_max")
    names = [name for name, value in ours.hyperparameters().items() if value and name not in left_out]
    values = [torch.tensor(ours.hyperparameters()[name], requires_grad=True) for name in names]

    def run(phi: Tensor, *hyper: Tensor) -> Tensor:
        return walk(replace(ours, **dict(zip(names, hyper, strict=True))), phi, 4)

    assert torch.autograd.gradcheck(run, [begin().requires_grad_(), *values])


@pytest.mark.parametrize("rule", [name for name in RULES if name != "rprop"])
def test_per_parameter_hyperparameters(rule: str) -> None:
    """lr as a row [param] gives each coordinate the walk of its own lr."""
    ours = RULES[rule][0]
    rates = torch.tensor([0.01, 0.03, 0.1, 0.2])
    together = walk(replace(ours, lr=rates), begin(), 5)
    for i, rate in enumerate(rates.tolist()):
        torch.testing.assert_close(together[:, i], walk(replace(ours, lr=rate), begin(), 5)[:, i])


@pytest.mark.parametrize("rule", [Adam(), AdamW(), Adagrad(), RMSprop(), RMSprop(centered=True), Adadelta(), Adamax()])
def test_coordinates_without_gradient_keep_derivatives_finite(rule: DifferentiableOptimizer) -> None:
    phi = begin().requires_grad_()
    walk(rule, phi, 3).sum().backward()
    assert phi.grad.isfinite().all()


# higher 0.2.1 has no AdamW of current torch, and warns of its own RMSprop and Rprop.
@pytest.mark.filterwarnings("ignore:Differentiable R")
@pytest.mark.parametrize(
    "rule", ["sgd", "momentum", "nesterov", "adam", "adagrad", "rmsprop", "adadelta", "adamax", "asgd", "rprop"]
)
def test_meta_gradients_are_those_of_higher(rule: str) -> None:
    higher = pytest.importorskip("higher")
    ours, kind, options = RULES[rule]
    if rule == "adam":  # where higher still adds eps before the bias correction
        ours, options = replace(ours, eps=0.0), options | {"eps": 0.0}

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Parameter(begin()[:1, :3])

        def forward(self) -> Tensor:
            return nn.functional.pad(self.phi, (0, 1))

    row = Row()
    with higher.innerloop_ctx(row, kind(row.parameters(), **options), copy_initial_weights=False) as (inner, stepper):
        for _ in range(5):
            stepper.step(loss(inner()).sum())
        loss(inner()).sum().backward()
    phi = begin()[:1].requires_grad_()
    start = nn.functional.pad(phi[:, :3], (0, 1))
    loss(walk(ours, start, 5)).sum().backward()
    torch.testing.assert_close(phi.grad[:, :3], row.phi.grad, rtol=1e-9, atol=1e-12)


NETWORK = FlatNetwork(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))


@pytest.mark.parametrize(
    ("learned", "rows", "entries"),
    [
        (Learned("lr"), 1, 1),
        (Learned("lr", "tensor", per_step=True), 5, 4),
        (Learned("lr", "parameter"), 1, 13),
        (Learned("lr", "parameter", domain="real"), 1, 13),
        (Learned("lr", "group", per_step=True, groups=["1.*", "*"]), 5, 2),
        (Learned("beta1", "tensor"), 1, 4),
    ],
)
def test_learned_hyperparameters_start_at_the_optimizers_own(learned: Learned, rows: int, entries: int) -> None:
    rule = Adam(lr=0.03, beta1=0.8)
    learned.fit_to(NETWORK, rule, steps=5)
    assert learned.raw.shape == (rows, entries)
    for step in (1, 5, 9):
        value = learned(step)
        assert value.shape == ((1,) if learned.per == "run" else (13,))
        torch.testing.assert_close(value, torch.full_like(value, rule.hyperparameters()[learned.name]))


def test_learned_hyperparameters_reach_their_own_parameters_and_step() -> None:
    learned = Learned("lr", "group", per_step=True, groups=["1.*", "*"])
    learned.fit_to(NETWORK, SGD(0.1), steps=3)
    with torch.no_grad():
        learned.raw[1, 0] = 2.0  # softplus(2) = log(1 + e²)
    first, second = learned(1), learned(2)
    assert torch.equal(first[:9], second[:9])  # the nine parameters of layer 0
    torch.testing.assert_close(second[9:], torch.tensor(2.0).exp().log1p().expand(4))


def test_learned_values_stay_in_their_domain() -> None:
    for name, low, high in (("lr", 0, torch.inf), ("beta1", 0, 1)):
        learned = Learned(name)
        learned.fit_to(NETWORK, Adam(), steps=1)
        for raw in (-30.0, 30.0):
            with torch.no_grad():
                learned.raw.fill_(raw)
            assert low < learned(1).item() <= high


def test_the_learned_rule_starts_as_gradient_descent_and_has_derivatives() -> None:
    torch.manual_seed(0)
    rule = CoordinateWise(lr=0.05)
    torch.testing.assert_close(walk(rule, begin(), 4), walk(SGD(0.05), begin(), 4))
    with torch.no_grad():
        rule.net[-1].weight.normal_(std=0.3)
    weights = [p.detach().clone().requires_grad_() for p in rule.parameters()]
    names = [name for name, _ in rule.named_parameters()]

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rule = rule

        def forward(self, phi: Tensor) -> Tensor:
            return walk(self.rule, phi, 3)

    def run(phi: Tensor, *values: Tensor) -> Tensor:
        named = {f"rule.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Run(), named, (phi,))[:, :3]

    assert torch.autograd.gradcheck(run, [begin().requires_grad_(), *weights])


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: SGD(lr=-1.0), "lr"),
        (lambda: Adam(beta1=1.0), "beta1"),
        (lambda: SGD(nesterov=True), "momentum"),
        (lambda: Learned("lr", "group"), "groups"),
        (lambda: Learned("speed").fit_to(NETWORK, SGD(), 1), "speed"),
        (lambda: Learned("momentum").fit_to(NETWORK, SGD(), 1), "momentum"),
        (lambda: Learned("lr").fit_to(NETWORK, CoordinateWise(), 1), "CoordinateWise"),
        (lambda: Learned("lr", "group", groups=["0.*"]).fit_to(NETWORK, SGD(), 1), "1.weight"),
    ],
)
def test_refusals_name_the_option(build, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        build()
