"""Milliseconds a task of one inner gradient and one curvature product, by tasks solved together and by route.

    python benchmarks/task_chunk.py [--threads 1] [--chunks 1 4 16]

Conv4 by its own written-out derivatives and by vmap and autograd, as every other network; the MLP of the sinusoids by
vmap and autograd, and compiled.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from _common import publish
from _speed import seconds
from torch import nn

from imaml_lightning import Examples, FlatNetwork, InnerObjective, ProximalTerm
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.models import MLP, Conv4
from imaml_lightning.problem import GaussNewton, Hessian
from imaml_lightning.problem.compiled import CompiledDerivatives


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median of ``repeats`` calls after two to warm up."""
    return 1000 * statistics.median([seconds(function) for _ in range(repeats + 2)][2:])


class Plain(Conv4):
    """A subclass takes the general route: vmap and autograd."""


Options = dict[str, int | str]
CONVOLUTIONS: list[Options] = [
    {"filters": filters, "downsample": downsample} for filters in (32, 64) for downsample in ("stride", "max_pool")
]


def objectives(chunk: int) -> Iterator[tuple[str, str, InnerObjective]]:
    """Network, route and inner problem of each row."""
    images = Examples(torch.rand(chunk, 5, 1, 28, 28), torch.arange(5).expand(chunk, 5))
    for options in CONVOLUTIONS:
        name = f"Conv4, {options['filters']} filters, {options['downsample']}"
        for route, network in {"written out": Conv4, "general": Plain}.items():
            yield name, route, objective(network(**options), images, nn.CrossEntropyLoss())
    points = Examples(torch.randn(chunk, 10, 1), torch.randn(chunk, 10, 1))
    mlp, square = MLP(hidden=[40, 40]), nn.MSELoss()
    yield "MLP, 40 and 40 units", "general", objective(mlp, points, square)
    derivatives = CompiledDerivatives(FlatNetwork(mlp), square)
    yield "MLP, 40 and 40 units", "compiled", objective(mlp, points, square, derivatives)


def objective(
    network: nn.Module, support: Examples, criterion: nn.Module, derivatives: CompiledDerivatives | None = None
) -> InnerObjective:
    flat = FlatNetwork(network)
    return InnerObjective(flat, support, flat.vector().detach(), ProximalTerm(), criterion, derivatives)


def measure(objective: InnerObjective) -> dict[str, float]:
    """Milliseconds a task of each evaluation."""
    start = objective.start()
    phi, u = start + 0.01 * torch.randn(start.shape), torch.randn(start.shape)
    at = objective.linearise(phi)
    evaluations = {
        "gradient": lambda: objective.value_and_gradient(phi),
        "linearise": lambda: objective.linearise(phi),
        "gauss_newton": lambda: GaussNewton().product(at, u),
        "hessian": lambda: Hessian().product(at, u),
    }
    chunk = len(start)
    return {name: milliseconds(run, 5 if chunk > 1 else 15) / chunk for name, run in evaluations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    for chunk in options.chunks:
        for network, route, problem in objectives(chunk):
            figures = {k: round(v, 3) for k, v in measure(problem).items()}
            rows.append({"network": network, "chunk": chunk, "route": route} | figures)
    rows.sort(key=lambda row: str(row["network"]))
    publish(f"task_chunk_{options.threads}_threads", rows)


if __name__ == "__main__":
    main()
