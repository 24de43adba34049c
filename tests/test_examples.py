"""The examples of docs/implicit.md run, and their gradients are those of the whole solve."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev
from torch.nn.functional import cross_entropy, one_hot

from imaml_lightning.adaptation.argmin import NewtonKrylov
from imaml_lightning.inner import LBFGS
from imaml_lightning.linear import GMRES, ConjugateGradient

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.py"))
F64 = torch.float64


def load(name: str) -> ModuleType:
    """The example's functions, without running it."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(loss, m: Tensor, direction: Tensor, h: float) -> Tensor:
    """The derivative of ``loss`` along ``direction``, of fourth order."""
    around = [loss(m + step * h * direction) for step in (-2, -1, 1, 2)]
    return (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * h)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "CONVERGED" in printed
    words = [word.rstrip(",") for line in printed.splitlines() if "solve" not in line for word in line.split()]
    figures = [float(word) for word in words if word.replace(".", "", 1).isdigit() and "." in word]
    if path.stem == "regularisation":
        assert figures[2] < 0.95 * figures[0]  # the validation loss
    elif path.stem == "cleaning":
        assert figures[2] < figures[0]  # the loss on clean data
        assert figures[3] > figures[1] + 0.02  # test accuracy
        assert figures[4] > figures[5] + 0.2  # trust in right and wrong labels
    elif path.stem == "equilibrium":
        assert figures[0] > 0.8  # test accuracy, of ten classes
    else:
        assert figures[1] < 0.5 * figures[0]  # the query loss


def test_regularisation() -> None:
    example = load("regularisation")
    m = torch.linspace(-4, -2, 30, dtype=F64).requires_grad_()
    loss, w, _ = example.validation_loss(m)
    (gradient,) = torch.autograd.grad(loss, m)
    u = torch.linalg.solve(
        hessian(example.G)(w.detach(), m.detach()),
        grad(
            lambda w: torch.nn.functional.binary_cross_entropy_with_logits(
                example.x[example.validation] @ w, example.y[example.validation]
            )
        )(w.detach()),
    )
    expected = -jacrev(grad(example.G), argnums=1)(w.detach(), m.detach()).T @ u
    assert (gradient - expected).norm() <= 1e-8 * expected.norm()
    direction = torch.ones(30, dtype=F64)
    whole = difference(lambda m: example.validation_loss(m)[0].detach(), m.detach(), direction, 1e-3)
    assert abs(whole - gradient @ direction) <= 1e-8 * gradient.norm()


def test_cleaning() -> None:
    example = load("cleaning")
    tight = {"inner_solver": LBFGS(max_steps=2000, rtol=1e-11), "linear_solver": ConjugateGradient(1000, 1e-12)}
    m = torch.linspace(-1, 1, 500, dtype=F64).requires_grad_()
    loss, phi, report = example.clean_loss(m, **tight)
    (gradient,) = torch.autograd.grad(loss, m)
    # The gradient in closed form: H is 650 x 650, and an example's weight enters by its own ∇loss alone.
    x = torch.cat([example.x, torch.ones(len(example.x), 1, dtype=F64)], 1)
    theta = torch.cat([phi["weight"], phi["bias"][:, None]], 1).detach()
    rows, trust = x[example.train], m.detach().sigmoid()
    p = (rows @ theta.T).softmax(1)
    matrix = 1e-3 * torch.eye(650, dtype=F64)
    for c in range(10):
        for d in range(10):
            weights = trust / 500 * (p[:, c] * (c == d) - p[:, c] * p[:, d])
            matrix[c * 65 : c * 65 + 65, d * 65 : d * 65 + 65] += rows.T @ (weights[:, None] * rows)
    clean, labels = x[example.clean], one_hot(example.y[example.clean], 10)
    v = ((clean @ theta.T).softmax(1) - labels).T @ clean / len(clean)
    u = torch.linalg.solve(matrix, v.reshape(-1)).reshape(10, 65)
    each = (p - one_hot(example.labels, 10)) * (rows @ u.T)
    expected = -(trust * (1 - trust) / 500) * each.sum(1)
    assert (gradient - expected).norm() <= 1e-8 * expected.norm()
    direction = expected / expected.norm()
    whole = difference(lambda m: example.clean_loss(m, **tight)[0].detach(), m.detach(), direction, 1e-2)
    assert abs(whole - gradient @ direction) <= 1e-8 * gradient.norm()
    assert abs(cross_entropy(clean @ theta.T, example.y[example.clean]) - loss) < 1e-12
    assert report.linear is not None


def test_equilibrium() -> None:
    torch.manual_seed(0)
    layer = load("equilibrium").Equilibrium(3, 4).double()
    x, parameters = torch.randn(5, 3, dtype=F64), dict(layer.named_parameters())
    tight = {"solver": NewtonKrylov(rtol=1e-14), "linear_solver": GMRES(50, 1e-13)}
    gradients = torch.autograd.grad(layer(x, **tight).sin().sum(), list(parameters.values()))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        z = torch.zeros(5, 4, dtype=F64)
        for _ in range(200):
            drive = x @ parameters["outside.weight"].T + parameters["outside.bias"]
            z = torch.tanh(z @ parameters["inside.weight"].T + drive)
        return z.sin().sum()

    for found, (name, expected) in zip(gradients, grad(loss)(parameters).items(), strict=True):
        assert (found - expected).norm() <= 1e-8 * expected.norm(), name
    weight = parameters["inside.weight"].detach()
    direction = torch.linspace(-1, 1, 16, dtype=F64).reshape(4, 4)

    def whole(w: Tensor) -> Tensor:
        return functional_call(layer, {"inside.weight": w}, (x,), tight).sin().sum().detach()

    moved = (gradients[0] * direction).sum()
    assert abs(difference(whole, weight, direction, 1e-3) - moved) <= 1e-8 * gradients[0].norm()


def test_few_shot() -> None:
    """θ's gradient and λ's in closed form: φ* is that of ridge regression on the features, task by task."""
    example = load("few_shot")
    example.body.double()
    for name in ("theta", "log_strength"):
        setattr(example, name, torch.nn.Parameter(getattr(example, name).detach().double() + 0.3))
    support, query = (tuple(part.double() for part in parts) for parts in example.tasks(3))
    parameters = [example.theta, example.log_strength, *example.body.parameters()]
    found = torch.autograd.grad(example.query_loss(support, query)[0], parameters)

    def features(x: Tensor) -> Tensor:
        return torch.cat([example.body(x), torch.ones_like(x)], 2)

    a, b = features(support[0]), support[1]
    strength = example.log_strength.exp()
    matrix = 2 * a.mT @ a / 5 + strength * torch.eye(21, dtype=F64)
    phi = torch.linalg.solve(matrix, 2 * a.mT @ b / 5 + strength * example.theta[:, None])
    loss = (features(query[0]) @ phi - query[1]).square().mean()
    for gradient, expected in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        assert (gradient - expected).norm() <= 1e-8 * expected.norm()
