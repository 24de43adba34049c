"""The derivative of a minimiser by five libraries: the same problem, the same solvers, and how far each is from dense algebra.

    python benchmarks/hypergradients.py [--features 50] [--examples 200] [--steps 2000] [--cg 100] [--repeats 5]

The inner problem is logistic regression with a strength of the regulariser for each feature, in float64; wanted is the gradient of
the validation loss in the logarithms of the strengths. Every library takes the same steps of gradient descent and then at most the
same number of conjugate gradient steps (JAXopt ends where a step no longer changes w). Betty 0.1.1, the
newest for Python 3.11 and later, forms each direction from the residual before the last (``p_new`` in betty/hypergradient/cg.py), so
its conjugate gradients do not converge. The reference is the formula with every matrix written
out at a minimiser found by Newton's method. The second row of ours uses solvers that the others do not have. Lines are those of
the function here, without its signature, docstring and blank ones. What is not installed is left out; ``make bench-peers`` brings
what the registry has into an environment of its own: TorchOpt, Betty and JAXopt. hypertorch is no package there: the one of that
name is for hypergraphs. Times are medians, in turn. Writes benchmarks/results/hypergradients.csv and .md.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _common import publish
from _speed import in_turn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from imaml_lightning import argmin
from imaml_lightning.inner import GradientDescent, Newton
from imaml_lightning.linear import ConjugateGradient, Dense

Hypergradient = Callable[[], Tensor]


@dataclass
class Problem:
    """Data, and how all shall solve."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    log_strength: Tensor
    steps: int
    cg: int
    lr: float

    @staticmethod
    def of(chosen: argparse.Namespace) -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * chosen.examples, chosen.features, dtype=torch.float64, generator=generator)
        x = x * torch.logspace(0, -1, chosen.features, dtype=torch.float64)  # features of different sizes
        truth = 3 * torch.randn(chosen.features, dtype=torch.float64, generator=generator)
        y = (torch.rand(len(x), generator=generator) < torch.sigmoid(x @ truth)).double()
        half = chosen.examples
        log_strength = torch.full((chosen.features,), -3.0, dtype=torch.float64)
        largest = torch.linalg.eigvalsh(x[:half].T @ x[:half] / half / 4)[-1] + log_strength.exp().max()
        return Problem(
            (x[:half], y[:half]), (x[half:], y[half:]), log_strength, chosen.steps, chosen.cg, 1 / float(largest)
        )

    def inner(self, w: Tensor, log_strength: Tensor) -> Tensor:
        x, y = self.train
        return cross_entropy(x @ w, y) + 0.5 * (log_strength.exp() * w.square()).sum()

    def outer(self, w: Tensor) -> Tensor:
        x, y = self.validation
        return cross_entropy(x @ w, y)

    def reference(self) -> Tensor:
        """Newton's method and −(∂²G/∂m∂φ)ᵀ (∇²G)⁻¹ ∇L, all written out."""
        from torch.func import grad, hessian, jacrev

        w, m = torch.zeros_like(self.log_strength), self.log_strength
        for _ in range(50):
            w = w - torch.linalg.solve(hessian(self.inner)(w, m), grad(self.inner)(w, m))
        u = torch.linalg.solve(hessian(self.inner)(w, m), grad(self.outer)(w))
        return -jacrev(grad(self.inner), argnums=1)(w, m).T @ u


def ours(problem: Problem) -> Tensor:
    m = problem.log_strength.clone().requires_grad_()
    solvers = GradientDescent(problem.lr, problem.steps), ConjugateGradient(problem.cg, 1e-15)
    w, _ = argmin(problem.inner, torch.zeros_like(m), m, inner_solver=solvers[0], linear_solver=solvers[1])
    return torch.autograd.grad(problem.outer(w), m)[0]


def ours_by_newton(problem: Problem) -> Tensor:
    m = problem.log_strength.clone().requires_grad_()
    w, _ = argmin(problem.inner, torch.zeros_like(m), m, inner_solver=Newton(rtol=1e-12), linear_solver=Dense())
    return torch.autograd.grad(problem.outer(w), m)[0]


def torchopt(problem: Problem) -> Tensor:
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_cg

    linear = solve_cg(maxiter=problem.cg, rtol=0.0, atol=0.0)

    @custom_root(torch.func.grad(problem.inner, argnums=0), argnums=1, solve=linear)
    def solve(w: Tensor, m: Tensor) -> Tensor:
        for _ in range(problem.steps):
            w = w.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(problem.inner(w, m), w)
            w = w - problem.lr * gradient
        return w.detach().requires_grad_()

    m = problem.log_strength.clone().requires_grad_()
    return torch.autograd.grad(problem.outer(solve(torch.zeros_like(m), m)), m)[0]


def betty(problem: Problem) -> Tensor:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Vector(nn.Module):
        def __init__(self, value: Tensor) -> None:
            super().__init__()
            self.value = nn.Parameter(value.clone())

        def forward(self) -> Tensor:
            return self.value

    class Inner(ImplicitProblem):
        def training_step(self, batch: object) -> Tensor:
            return problem.inner(self.module(), self.outer())

    class Outer(ImplicitProblem):
        def training_step(self, batch: object) -> Tensor:
            return problem.outer(self.inner())

    parts = {
        "inner": (
            Inner,
            torch.zeros_like(problem.log_strength),
            problem.lr,
            Config(type="cg", cg_iterations=problem.cg, unroll_steps=problem.steps),
        )
    }
    parts["outer"] = Outer, problem.log_strength, 1.0, Config(retain_graph=True)
    built = {}
    for name, (kind, value, lr, config) in parts.items():
        module = Vector(value)
        optimizer = torch.optim.SGD(module.parameters(), lr=lr)
        built[name] = kind(name, config, module, optimizer, train_data_loader=[(torch.zeros(1),)], device="cpu")
    inner, outer = built["inner"], built["outer"]
    edges = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    Engine([outer, inner], EngineConfig(train_iters=problem.steps), edges).run()
    return problem.log_strength - outer.module.value.detach()  # one outer step of length 1


def jaxopt(problem: Problem) -> Hypergradient:
    """JAXopt's gradient, compiled when it is first called."""
    import jax
    import jax.numpy as jnp
    from jaxopt import GradientDescent as Descent
    from jaxopt.linear_solve import solve_cg

    jax.config.update("jax_enable_x64", True)
    (x, y), (xv, yv) = ([jnp.asarray(p.numpy()) for p in part] for part in (problem.train, problem.validation))
    m = jnp.asarray(problem.log_strength.numpy())

    def loss(w, x, y):
        z = x @ w
        return jnp.mean(jnp.logaddexp(0, z) - y * z)

    def inner(w, m):
        return loss(w, x, y) + 0.5 * jnp.sum(jnp.exp(m) * w**2)

    def linear(product, v):
        return solve_cg(product, v, maxiter=problem.cg, tol=1e-15)

    descent = Descent(
        inner, maxiter=problem.steps, stepsize=problem.lr, tol=0.0, acceleration=False, implicit_diff_solve=linear
    )
    gradient = jax.jit(jax.grad(lambda m: loss(descent.run(jnp.zeros_like(m), m).params, xv, yv)))
    return lambda: torch.from_numpy(jax.device_get(gradient(m)).copy())


def lines(function: Callable) -> int:
    """Of its body."""
    text = inspect.getsource(function).split('"""')[0::2]
    return sum(bool(line.strip()) for part in text for line in part.splitlines()) - 1


def contenders(problem: Problem) -> dict[str, tuple[Hypergradient, int]]:
    """By name: the gradient, and the lines that it takes."""
    table = {
        "imaml_lightning": (lambda: ours(problem), lines(ours)),
        "imaml_lightning, Newton and dense": (lambda: ours_by_newton(problem), lines(ours_by_newton)),
    }
    for name, package, function in (("TorchOpt", "torchopt", torchopt), ("Betty", "betty", betty)):
        if importlib.util.find_spec(package):
            table[name] = (lambda function=function: function(problem)), lines(function)
    if importlib.util.find_spec("jaxopt"):
        table["JAXopt, compiled"] = jaxopt(problem), lines(jaxopt)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000, help="of gradient descent")
    parser.add_argument("--cg", type=int, default=100, help="conjugate gradient steps, at most")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Betty tells of itself
    problem = Problem.of(chosen)
    table, expected = contenders(problem), problem.reference()
    errors = {name: ((run() - expected).norm() / expected.norm()).item() for name, (run, _) in table.items()}
    times = in_turn({name: run for name, (run, _) in table.items()}, chosen.repeats)
    publish(
        "hypergradients",
        [
            {
                "library": name,
                "error of the gradient": errors[name],
                "seconds": times[name],
                "lines": count,
                "says how good it is": "yes" if name.startswith("imaml") else "no",
            }
            for name, (_, count) in table.items()
        ],
    )


if __name__ == "__main__":
    main()
