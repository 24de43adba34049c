"""Seconds of a meta-step beside other libraries: the same network, start, episode, steps and precision, in one process.

    python benchmarks/peers.py [--settings 5w1s 20w1s] [--threads 1] [--repeats 5]

iMAML takes 16 (5-way) or 25 (20-way) steps of descent and exactly 5 conjugate gradient steps; MAML 5 steps. All contenders are
timed in turn, and each figure is the median of its repeats. Every row says how far its meta-gradient is from ours. What
is not installed is left out; ``make bench-peers`` brings what the registry has into an environment of its own: TorchOpt
(implicit) and higher (unrolled). learn2learn does not build on Python 3.11 and newer; hypertorch, GBML and the
authors' code are no packages. Writes benchmarks/results/peers.csv.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from statistics import median

import torch
from _common import show, write
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from imaml_lightning import Episode, Examples, FirstOrder, Implicit, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation, Unrolled
from imaml_lightning.curvature import GaussNewton, Hessian
from imaml_lightning.inner import GradientDescent
from imaml_lightning.linear import ConjugateGradient
from imaml_lightning.models import Conv4
from imaml_lightning.optimizers import SGD

LR, STRENGTH, CG_STEPS, MAML_STEPS = 0.05, 2.0, 5, 5
STEPS = {5: 16, 20: 25}

MetaStep = Callable[[], Tensor]  # the meta-gradient, the sum over tasks, as one vector


def ours(network: nn.Module, episode: Episode, adaptation: Adaptation) -> MetaStep:
    learner = MetaLearner(network, adaptation, task_chunk=8)

    def meta_step() -> Tensor:
        learner.zero_grad()
        for chunk in episode.chunks(8):
            learner.judge(learner.adapted(chunk.support).phi, chunk.query)["loss"].sum().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    return meta_step


def torchopt_implicit(network: nn.Module, episode: Episode, steps: int) -> MetaStep:
    """TorchOpt's ``custom_root`` with its conjugate gradients, task by task as in its own iMAML example."""
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_cg

    names = [name for name, _ in network.named_parameters()]

    def objective(phi: tuple[Tensor, ...], theta: tuple[Tensor, ...], data: Examples) -> Tensor:
        outputs = functional_call(network, dict(zip(names, phi, strict=True)), (data.x,))
        distance = sum((p - t).square().sum() for p, t in zip(phi, theta, strict=True))
        return cross_entropy(outputs, data.y) + STRENGTH / 2 * distance

    @custom_root(torch.func.grad(objective, argnums=0), argnums=1, solve=solve_cg(maxiter=CG_STEPS, rtol=0.0, atol=0.0))
    def solve(start: tuple[Tensor, ...], theta: tuple[Tensor, ...], data: Examples) -> tuple[Tensor, ...]:
        phi = tuple(p.detach().clone().requires_grad_() for p in start)
        for _ in range(steps):
            with torch.enable_grad():
                gradient = torch.autograd.grad(objective(phi, theta, data), phi)
            phi = tuple((p - LR * g).detach().requires_grad_() for p, g in zip(phi, gradient, strict=True))
        return phi

    def meta_step() -> Tensor:
        theta = tuple(network.parameters())
        total = [torch.zeros_like(p) for p in theta]
        for task in episode.chunks(1):
            support, query = (Examples(part.x[0], part.y[0]) for part in task)
            phi = solve(theta, theta, support)
            outputs = functional_call(network, dict(zip(names, phi, strict=True)), (query.x,))
            gradient = torch.autograd.grad(cross_entropy(outputs, query.y), theta)
            total = [t + g for t, g in zip(total, gradient, strict=True)]
        return torch.cat([g.flatten() for g in total])

    return meta_step


def higher_maml(network: nn.Module, episode: Episode, steps: int) -> MetaStep:
    """higher's ``innerloop_ctx``, task by task as in its own example."""
    import higher

    def meta_step() -> Tensor:
        network.zero_grad()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR)
        for task in episode.chunks(1):
            support, query = (Examples(part.x[0], part.y[0]) for part in task)
            with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (inner, stepper):
                for _ in range(steps):
                    stepper.step(cross_entropy(inner(support.x), support.y))
                cross_entropy(inner(query.x), query.y).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    return meta_step


def contenders(network: nn.Module, episode: Episode, steps: int) -> dict[str, tuple[str, MetaStep]]:
    """By name: the contender whose meta-gradient it should have, and its meta-step. Ours come first."""
    descent, cg = GradientDescent(LR, steps), ConjugateGradient(CG_STEPS, rtol=0.0)
    hessian, gauss_newton = f"iMAML, {steps} steps, Hessian", f"iMAML, {steps} steps, Gauss-Newton"
    first, unrolled = f"first order, {steps} steps", f"MAML, {MAML_STEPS} steps"
    members = {
        hessian: Implicit(descent, cg, Hessian(), ProximalTerm(STRENGTH)),
        gauss_newton: Implicit(descent, cg, GaussNewton(), ProximalTerm(STRENGTH)),
        first: FirstOrder(descent, ProximalTerm(STRENGTH)),
        unrolled: Unrolled(SGD(lr=LR), MAML_STEPS),
    }
    table = {name: (name, ours(network, episode, member)) for name, member in members.items()}
    if importlib.util.find_spec("torchopt"):
        table[f"TorchOpt, {steps} steps, Hessian"] = hessian, torchopt_implicit(network, episode, steps)
    if importlib.util.find_spec("higher"):
        table[f"higher, {MAML_STEPS} steps"] = unrolled, higher_maml(network, episode, MAML_STEPS)
    return table


def measure(way: int, shot: int, options: argparse.Namespace) -> list[dict[str, object]]:
    torch.manual_seed(0)
    labels = torch.arange(way)

    def images(count: int) -> Examples:
        return Examples(
            torch.rand(options.tasks, way * count, 1, 28, 28), labels.repeat(count).expand(options.tasks, -1)
        )

    table = contenders(Conv4(way=way), Episode(images(shot), images(options.query)), STEPS[way])
    gradients: dict[str, Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in table}
    for repeat in range(options.repeats + 1):
        for name, (_, meta_step) in table.items():
            began = time.perf_counter()
            gradients[name] = meta_step()
            if repeat:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    rows = []
    for name, (model, _) in table.items():
        difference = (gradients[name] - gradients[model]).norm() / gradients[model].norm()
        rows.append(
            {
                "setting": f"{way}w{shot}s",
                "contender": name,
                "seconds": median(times[name]),
                "times ours": median(times[name]) / median(times[model]),
                "difference": difference.item(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["5w1s", "5w5s", "20w1s"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--query", type=int, default=1, help="query images a class")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for setting in options.settings:
        way, shot = setting.removesuffix("s").split("w")
        rows += measure(int(way), int(shot), options)
    show(rows)
    write("peers", rows)


if __name__ == "__main__":
    main()
