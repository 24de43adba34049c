"""Seconds of a meta-step beside other libraries: the same network, start, episode, steps and precision, in one process.

    python benchmarks/peers.py [--settings 5w1s 20w1s] [--query 1] [--repeats 3] [--device cuda]

iMAML takes 16 (5-way) or 25 (20-way) steps of descent and exactly 5 conjugate gradient steps; MAML 5 steps. All contenders are
timed in turn, with freed memory kept as our command line keeps it, and each figure is the median of its repeats. Every row
says how far its meta-gradient is from ours. What is not installed is left out; ``make bench-peers`` brings what the
registry has into an environment of its own: TorchOpt (implicit), higher and learn2learn (unrolled; its part for data does
not build on Python 3.11 and newer, so its MAML is taken without). hypertorch, GBML and the authors' code are no packages.
Writes benchmarks/results/peers.csv and .md and docs/peers.png.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from _common import publish, save
from _peers import find_learn2learn
from _speed import CG_STEPS, LR, SETTINGS, STRENGTH, Setting, in_turn, options
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from imaml_lightning import Episode, Examples, FirstOrder, MetaLearner, ProximalTerm
from imaml_lightning.adaptation import Adaptation, Unrolled
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.inner import GradientDescent
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem import Hessian

MAML_STEPS = 5
PEERS = ("TorchOpt", "higher", "learn2learn")

MetaStep = Callable[[], Tensor]  # the meta-gradient, the sum over tasks, as one vector


def ours(network: nn.Module, episode: Episode, adaptation: Adaptation) -> MetaStep:
    learner = MetaLearner(network, adaptation)
    size = 8 if episode.support.x.device.type == "cpu" else None

    def meta_step() -> Tensor:
        learner.zero_grad()
        for chunk in episode.chunks(size):
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


def learn2learn_maml(network: nn.Module, episode: Episode, steps: int) -> MetaStep:
    """learn2learn's ``MAML``, task by task as in its own example."""
    from learn2learn.algorithms.maml import MAML

    def meta_step() -> Tensor:
        network.zero_grad()
        maml = MAML(network, lr=LR)
        for task in episode.chunks(1):
            support, query = (Examples(part.x[0], part.y[0]) for part in task)
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(cross_entropy(learner(support.x), support.y))
            cross_entropy(learner(query.x), query.y).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    return meta_step


def contenders(network: nn.Module, episode: Episode, setting: Setting) -> dict[str, tuple[str, MetaStep]]:
    """By name: the contender whose meta-gradient it should have, and its meta-step. Ours come first."""
    steps = setting.inner_steps
    hessian, gauss_newton = f"iMAML, {steps} steps, Hessian", f"iMAML, {steps} steps, Gauss-Newton"
    first, unrolled = f"first order, {steps} steps", f"MAML, {MAML_STEPS} steps"
    members = {
        hessian: setting.adaptation(Hessian()),
        gauss_newton: setting.adaptation(),
        first: FirstOrder(GradientDescent(LR, steps), ProximalTerm(STRENGTH)),
        unrolled: Unrolled(SGD(lr=LR), MAML_STEPS),
    }
    table = {name: (name, ours(network, episode, member)) for name, member in members.items()}
    if importlib.util.find_spec("torchopt"):
        table[f"TorchOpt, {steps} steps, Hessian"] = hessian, torchopt_implicit(network, episode, steps)
    if importlib.util.find_spec("higher"):
        table[f"higher, {MAML_STEPS} steps"] = unrolled, higher_maml(network, episode, MAML_STEPS)
    if find_learn2learn():
        table[f"learn2learn, {MAML_STEPS} steps"] = unrolled, learn2learn_maml(network, episode, MAML_STEPS)
    return table


def measure(setting: Setting, chosen: argparse.Namespace) -> list[dict[str, object]]:
    torch.manual_seed(0)
    network = setting.network().to(chosen.device)
    tasks = chosen.tasks or setting.tasks
    table = contenders(network, setting.episode(tasks, chosen.query, chosen.device), setting)
    gradients = {name: meta_step() for name, (_, meta_step) in table.items()}
    times = in_turn({name: meta_step for name, (_, meta_step) in table.items()}, chosen.repeats)
    return [
        {
            "setting": setting.name,
            "tasks": tasks,
            "contender": name,
            "seconds": times[name],
            "times ours": times[name] / times[model],
            "difference": ((gradients[name] - gradients[model]).norm() / gradients[model].norm()).item(),
        }
        for name, (model, _) in table.items()
    ]


def picture(rows: list[dict[str, object]]) -> Figure:
    """Bars of seconds, a panel for each setting; other libraries in another colour."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(9, 0.6 + 1.6 * len(settings)), layout="constrained")
    for axes, setting in zip(figure.subplots(len(settings), squeeze=False)[:, 0], settings, strict=True):
        shown = [row for row in rows if row["setting"] == setting][::-1]
        colours = ["tab:orange" if row["contender"].split(",")[0] in PEERS else "tab:blue" for row in shown]
        bars = axes.barh([row["contender"] for row in shown], [row["seconds"] for row in shown], color=colours)
        axes.bar_label(bars, [f"{row['seconds']:.2g} s" for row in shown], padding=3)
        axes.set_title(setting, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    axes.set_xlabel("seconds of a meta-step (orange: other libraries)")
    return figure


def main() -> None:
    parser = options(__doc__, settings=list(SETTINGS))
    parser.set_defaults(query=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    rows: list[dict[str, object]] = []
    for name in chosen.settings:
        rows += measure(SETTINGS[name], chosen)
        publish("peers", rows)
    save(picture(rows), "peers")


if __name__ == "__main__":
    main()
