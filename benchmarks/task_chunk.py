"""Milliseconds a task of one inner gradient and one curvature product, by tasks solved together.

python benchmarks/task_chunk.py [--threads 1] [--chunks 1 4 16]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from _common import publish
from _speed import seconds
from torch import nn

from imaml_lightning import Examples, FlatNetwork, InnerObjective, ProximalTerm
from imaml_lightning.curvature import GaussNewton, Hessian
from imaml_lightning.models import Conv4


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median of ``repeats`` calls after two to warm up."""
    return 1000 * statistics.median([seconds(function) for _ in range(repeats + 2)][2:])


class Plain(Conv4):
    """A subclass takes the general route: vmap and autograd."""


ROUTES = {"written out": Conv4, "general": Plain}


def measure(route: str, filters: int, downsample: str, chunk: int) -> dict[str, float]:
    """Milliseconds a task of each evaluation."""
    network = FlatNetwork(ROUTES[route](filters=filters, downsample=downsample))
    support = Examples(torch.rand(chunk, 5, 1, 28, 28), torch.arange(5).expand(chunk, 5))
    objective = InnerObjective(network, support, network.vector(), ProximalTerm(), nn.CrossEntropyLoss())
    phi = objective.start() + 0.01 * torch.randn(chunk, sum(network.sizes))
    at, u = objective.linearise(phi), torch.randn_like(phi)
    evaluations = {
        "gradient": lambda: objective.value_and_gradient(phi),
        "linearise": lambda: objective.linearise(phi),
        "gauss_newton": lambda: GaussNewton().product(at, u),
        "hessian": lambda: Hessian().product(at, u),
    }
    return {name: milliseconds(run, 5 if chunk > 1 else 15) / chunk for name, run in evaluations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    rows = []
    for filters, downsample in ((32, "stride"), (32, "max_pool"), (64, "stride"), (64, "max_pool")):
        for chunk in options.chunks:
            for route in ROUTES:
                network = {"filters": filters, "downsample": downsample, "chunk": chunk, "route": route}
                figures = {k: round(v, 2) for k, v in measure(route, filters, downsample, chunk).items()}
                rows.append(network | figures)
    publish(f"task_chunk_{options.threads}_threads", rows)


if __name__ == "__main__":
    main()
