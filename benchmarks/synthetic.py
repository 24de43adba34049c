"""Error of the meta-gradient against inner steps and products with the Hessian, where the exact one is known.

    python benchmarks/synthetic.py [--problems quadratic sinusoid] [--steps 1 2 4 ... 512]

The quadratic is linear regression (condition number 100), exact in closed form; the sinusoid network is the field's
two layers of 40 (Softplus for ReLU, so that second derivatives exist), exact by dense algebra at a minimiser found to
rounding. All in float64, errors relative in norm. Left: the inner solver varies and the linear system is solved to
rounding. Middle: at the minimiser, the linear solver varies. Right: gradient descent with a few steps of conjugate
gradients, as in figure 2 of Rajeswaran et al. (2019), and what differentiates through its steps, or not at all. Writes
benchmarks/results/synthetic.csv and docs/synthetic.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from _common import CountedCurvature, CountedObjective, Given, Tally, maml, meta_gradient, read, save, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import hessian

from imaml_lightning import (
    Adaptation,
    EpisodeDataModule,
    FirstOrder,
    Implicit,
    LinearSolver,
    MetaLearner,
    ProximalTerm,
)
from imaml_lightning import inner as solvers
from imaml_lightning.data import Sinusoid
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.linear import ConjugateGradient, Minres, Neumann, Nystrom, NystromPreconditioner
from imaml_lightning.problem import Curvature, GaussNewton, Hessian, InnerObjective

Row = dict[str, object]


@dataclass
class Problem:
    """A learner and a batch of tasks, with what is known of them exactly."""

    name: str
    learner: MetaLearner
    episode: Episode
    phi: Tensor  # φ* [task, param]
    gradient: Tensor  # of the mean query loss in θ [param]
    largest: float  # curvature of G at θ and φ*
    condition: float  # at φ*

    @property
    def objective(self) -> InnerObjective:
        return self.learner.objective(self.episode.support)

    def error(self, adaptation: Adaptation) -> float:
        """The relative error of its meta-gradient."""
        gradient, _ = meta_gradient(self.learner, adaptation, self.objective, self.episode.query)
        return ((gradient - self.gradient).norm() / self.gradient.norm()).item()

    def implicit_error(self, phi: Tensor, linear: LinearSolver, curvature: Curvature) -> float:
        """That of the implicit gradient at ``phi``."""
        return self.error(Implicit(Given(phi), linear, curvature, self.learner.adaptation.proximal))


def dense(learner: MetaLearner, episode: Episode, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ* by Newton's method from ``start [task, param]``, the meta-gradient there, and the eigenvalues of all ∇²G."""
    flat, criterion = learner.flat, learner.criterion
    theta, strength = flat.vector().detach(), learner.adaptation.proximal.strength().detach()
    found, gradients, spectra = [], [], []
    for x, y, xq, yq, phi in zip(*episode.support, *episode.query, start, strict=True):

        def inner(p: Tensor, x=x, y=y) -> Tensor:
            return criterion(flat(p, x), y) + 0.5 * (strength * (p - theta).square()).sum()

        for _ in range(4):
            matrix = hessian(inner)(phi)
            phi = phi - torch.linalg.solve(matrix, torch.func.grad(inner)(phi))
        v = torch.func.grad(lambda p, x=xq, y=yq: criterion(flat(p, x), y))(phi)
        found.append(phi)
        gradients.append(strength * torch.linalg.solve(matrix, v))
        spectra += [torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(hessian(inner)(theta))]
    return torch.stack(found), torch.stack(gradients).mean(0), torch.stack(spectra)


def problem(name: str, network: nn.Module, strength: float, episode: Episode, train: Iterator[Episode]) -> Problem:
    learner = MetaLearner(network, Implicit(proximal=ProximalTerm(strength)), nn.MSELoss()).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for batch in train:
        optimizer.zero_grad()
        learner.judge(learner.adapted(batch.support).phi, batch.query)["loss"].mean().backward()
        optimizer.step()
    objective = learner.objective(episode.support)
    near = solvers.LBFGS(max_steps=500, rtol=1e-8).minimise(objective, objective.start()).value
    phi, gradient, spectra = dense(learner, episode, near)
    assert (phi - near).norm() < 1e-3 * near.norm(), "Newton's method left the minimiser that L-BFGS found"
    at_minimiser = spectra[::2]
    condition = (at_minimiser[:, -1] / at_minimiser[:, 0]).max().item()
    return Problem(name, learner, episode, phi, gradient, spectra.max().item(), condition)


def quadratic() -> Problem:
    """Linear regression, 50 parameters, whose ∇²G has eigenvalues from 0.1 to 10; 4 tasks, each in a basis of its own."""
    torch.manual_seed(0)
    strength, size, tasks = 0.1, 50, 4
    scale = torch.logspace(-4, math.log10(10 - strength), size, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64)).Q
    # The mean squared error of n examples has curvature 2 XᵀX / n.
    x = basis * (scale * size / 2).sqrt().unsqueeze(1)
    support = Examples(x @ torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64)).Q, None)
    truth = torch.randn(tasks, size, 1, dtype=torch.float64)
    query = torch.randn(tasks, size, size, dtype=torch.float64)
    support = Examples(support.x, support.x @ truth)
    return problem(
        "quadratic",
        nn.Linear(size, 1, bias=False),
        strength,
        Episode(support, Examples(query, query @ truth)),
        iter(()),
    )


def sinusoid() -> Problem:
    """10-shot sinusoids, after 300 meta-steps."""
    torch.manual_seed(0)
    data = EpisodeDataModule(Sinusoid(), shot=10, query=10)

    def double(episode: Episode) -> Episode:
        return Episode(*(Examples(e.x.double(), e.y.double()) for e in episode))

    network = nn.Sequential(nn.Linear(1, 40), nn.Softplus(), nn.Linear(40, 40), nn.Softplus(), nn.Linear(40, 1))
    train = (double(data.episode("train", 16 * step, tasks=16)) for step in range(300))
    return problem("sinusoid network", network, 0.5, double(data.episode("test", 0, tasks=4)), train)


def inner_solvers(of: Problem, steps: int) -> dict[str, solvers.InnerSolver]:
    lr = 1 / of.largest
    root = math.sqrt(of.condition)
    best = {"lr": 4 * root**2 * lr / (root + 1) ** 2, "momentum": ((root - 1) / (root + 1)) ** 2}
    return {
        "gradient descent": solvers.GradientDescent(lr, steps),
        "backtracking": solvers.BacktrackingGradientDescent(1.0, steps),
        "Barzilai-Borwein": solvers.BarzilaiBorwein(lr, steps),
        "heavy ball": solvers.HeavyBall(**best, max_steps=steps),
        "Nesterov": solvers.Nesterov(lr, steps),
        "Adam": solvers.Adam(0.02, max_steps=steps),
        "L-BFGS": solvers.LBFGS(max_steps=steps),
        "Hessian-free": solvers.HessianFree(damping=1e-3, cg_rtol=0.01, max_steps=max(1, steps // 12)),
    }


def linear_solvers(of: Problem, steps: int) -> dict[str, tuple[LinearSolver, Curvature]]:
    cg = ConjugateGradient(steps, 0.0)
    return {
        "CG": (cg, Hessian()),
        "CG, Gauss-Newton": (cg, GaussNewton()),
        "CG, Nyström 10": (ConjugateGradient(steps, 0.0, NystromPreconditioner(10)), Hessian()),
        "MINRES": (Minres(steps, 0.0), Hessian()),
        "Nyström": (Nystrom(steps, 0.0), Hessian()),
        "Neumann": (Neumann(1.9 / of.largest, steps, 0.0), Hessian()),
    }


def inner_rows(of: Problem, grid: list[int]) -> Iterator[Row]:
    """The linear system solved to rounding; what is left is the error of the inner solve."""
    root = math.sqrt(of.condition)
    for steps in grid:
        for method, solver in inner_solvers(of, steps).items():
            objective = CountedObjective.of(of.objective, tally := Tally())
            if isinstance(solver, solvers.HessianFree):
                curvature = CountedCurvature(curvature=Hessian(), tally=tally)
                solver = replace(solver, curvature=curvature)
            phi = solver.minimise(objective, objective.start()).value
            error = of.implicit_error(phi, Minres(400, 1e-12), Hessian())
            yield {"panel": "inner", "method": method, "evaluations": tally.evaluations, "error": error}
        yield {"panel": "inner", "method": "(1 − 1/κ)ᵏ", "evaluations": steps, "error": (1 - 1 / of.condition) ** steps}
        yield {"panel": "inner", "method": "(1 − 1/√κ)ᵏ", "evaluations": steps, "error": (1 - 1 / root) ** steps}


def linear_rows(of: Problem, grid: list[int]) -> Iterator[Row]:
    """At φ*; what is left is the error of the linear solve."""
    root = math.sqrt(of.condition)
    for steps in grid:
        for method, (solver, curvature) in linear_solvers(of, steps).items():
            counted = CountedCurvature(curvature=curvature, tally=(tally := Tally()))
            error = of.implicit_error(of.phi, solver, counted)
            yield {"panel": "linear", "method": method, "evaluations": tally.products, "error": error}
        bound = 2 * root * ((root - 1) / (root + 1)) ** steps
        yield {"panel": "linear", "method": "2√κ ((√κ−1)/(√κ+1))ᵏ", "evaluations": steps, "error": bound}


def both_rows(of: Problem, grid: list[int]) -> Iterator[Row]:
    """Gradient descent, and every way to differentiate what it finds."""
    lr, objective, proximal = 1 / of.largest, of.objective, of.learner.adaptation.proximal
    strength = proximal.strength().item()
    for steps in grid:
        descent = solvers.GradientDescent(lr, steps)
        phi = descent.minimise(objective, objective.start()).value
        errors = {
            f"implicit, {cg} CG": of.implicit_error(phi, ConjugateGradient(cg, 0.0), Hessian()) for cg in (2, 5, 10, 20)
        }
        for kept in (5, 20):
            if steps > kept:
                errors[f"truncated, {kept} steps"] = of.error(maml(lr, steps, strength, kept))
        if steps <= 256:
            errors["MAML, unrolled"] = of.error(maml(lr, steps, strength))
        errors["first order"] = of.error(FirstOrder(Given(phi), proximal))
        for method, error in errors.items():
            yield {"panel": "both", "method": method, "evaluations": steps, "error": error}


PANELS = {
    "inner": ("gradient evaluations of the inner solve", "inner solvers, exact linear solve"),
    "linear": ("products with the Hessian", "linear solvers at the exact minimiser"),
    "both": ("steps of gradient descent", "gradient descent, all ways to differentiate"),
}


def draw(axes: Axes, rows: list[dict[str, str]], panel: str) -> None:
    mine = [row for row in rows if row["panel"] == panel]
    for method in dict.fromkeys(row["method"] for row in mine):
        points = [
            (float(row["evaluations"]), max(float(row["error"]), 1e-14)) for row in mine if row["method"] == method
        ]
        theory = "κ" in method
        style = (
            {"color": "black", "linewidth": 0.8, "linestyle": ":" if "√" in method else "--"}
            if theory
            else {"marker": ".", "linewidth": 1.2}
        )
        axes.plot(*zip(*sorted(points), strict=True), label=method, **style)
    axes.set(xscale="log", yscale="log", ylim=(1e-13, 20), xlabel=PANELS[panel][0])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)


def picture(rows: list[dict[str, str]]) -> Figure:
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(13, 4.2 * len(problems)), layout="constrained")
    for line, name in zip(figure.subplots(len(problems), 3, squeeze=False), problems, strict=True):
        for axes, panel in zip(line, PANELS, strict=True):
            draw(axes, [row for row in rows if row["problem"] == name], panel)
            axes.set_title(f"{name}: {PANELS[panel][1]}", fontsize=10)
        line[0].set_ylabel("relative error of the meta-gradient")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=["quadratic", "sinusoid"], default=["quadratic", "sinusoid"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--products", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96])
    options = parser.parse_args()
    for name in options.problems:
        of = {"quadratic": quadratic, "sinusoid": sinusoid}[name]()
        print(f"{of.name}: largest curvature {of.largest:.3g}, condition number at the minimiser {of.condition:.4g}")
        kept: list = [row for row in read("synthetic") if row["problem"] != of.name]
        parts = (inner_rows(of, options.steps), linear_rows(of, options.products), both_rows(of, options.steps))
        write("synthetic", kept + [{"problem": of.name, **row} for found in parts for row in found])
    save(picture(read("synthetic")), "synthetic")


if __name__ == "__main__":
    main()
