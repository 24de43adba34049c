"""How good is the meta-gradient on Omniglot with Conv4, for each inner solver, curvature, linear solver and λ?

    IMAML_OMNIGLOT_ROOT=DIR python benchmarks/omniglot_gradients.py [--checkpoints untrained PATH ...]

Every inner solver may spend about 16 gradient evaluations. At the φ it finds: the stationarity ‖∇G‖ / ‖∇L‖, the
extremal eigenvalues of the Hessian of L, and for each linear system the residual, the share of tasks that met negative
curvature, and the cosine between the meta-gradient and a reference: L-BFGS to a stationarity of 0.001 or as far as
400 steps lead, then the Hessian's system by MINRES (the exact implicit gradient, where that point is a minimiser);
for gradient descent also the cosine to MAML's gradient, the derivative of the steps that were taken. Writes
benchmarks/results/omniglot_gradients.csv and docs/omniglot_gradients.png; rows of other weights stay there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch
from _common import Given, maml, meta_gradient, omniglot, read, save, show, write
from matplotlib.figure import Figure
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from imaml_lightning import Episode, FirstOrder, Implicit, InnerObjective, MetaLearner, ProximalTerm
from imaml_lightning import inner as solvers
from imaml_lightning.adaptation import Adaptation, Adapted
from imaml_lightning.linear import ConjugateGradient, Minres, Neumann, Nystrom
from imaml_lightning.models import Conv4
from imaml_lightning.problem import GaussNewton, Hessian, ReleasedCode, Result

Row = dict[str, object]

INNER: dict[str, solvers.InnerSolver] = {
    "gradient descent, 16 x 0.1": solvers.GradientDescent(0.1, 16),
    "gradient descent, 8 x 0.2": solvers.GradientDescent(0.2, 8),
    "gradient descent, 16 x 0.05": solvers.GradientDescent(0.05, 16),
    "backtracking": solvers.BacktrackingGradientDescent(0.2, 8),
    "Barzilai-Borwein": solvers.BarzilaiBorwein(0.1, 16),
    "heavy ball": solvers.HeavyBall(0.05, 16, momentum=0.5),
    "Nesterov": solvers.Nesterov(0.05, 16),
    "Adam": solvers.Adam(0.01, max_steps=16),
    "L-BFGS": solvers.LBFGS(max_steps=12),
    "Hessian-free": solvers.HessianFree(max_steps=2, cg_steps=3),
}
SYSTEMS = {
    "first order": None,
    "Gauss-Newton, 2 CG": (GaussNewton(), ConjugateGradient(2, 0.0)),
    "Gauss-Newton, 3 CG": (GaussNewton(), ConjugateGradient(3, 0.0)),
    "Gauss-Newton, 5 CG": (GaussNewton(), ConjugateGradient(5, 0.0)),
    "Gauss-Newton, Nyström 5": (GaussNewton(), Nystrom(5)),
    "Gauss-Newton, Neumann 5": (GaussNewton(), Neumann(0.05, 5, 0.0)),
    "Hessian, 5 CG": (Hessian(), ConjugateGradient(5, 0.0)),
    "Hessian, 10 MINRES": (Hessian(), Minres(10, 0.0)),
    "released code, 5 CG": (ReleasedCode(), ConjugateGradient(5, 0.0)),
}


class Study:
    """One set of weights, one λ, a few test episodes, and the reference meta-gradient there."""

    def __init__(self, learner: MetaLearner, episode: Episode, strength: float, reference_steps: int) -> None:
        self.learner, self.episode = learner, episode
        self.proximal = ProximalTerm(strength)
        flat = learner.flat
        self.objective = InnerObjective(flat, episode.support, flat.vector(), self.proximal, learner.criterion)
        tight = solvers.LBFGS(max_steps=reference_steps, lr=0.05, rtol=1e-3)
        self.phi = tight.minimise(self.objective, self.objective.start()).value
        self.reference, adapted = self.gradient(Implicit(Given(self.phi), Minres(200, 1e-4), Hessian(), self.proximal))
        self.certificate = adapted.stationarity.mean().item(), adapted.linear.residual.mean().item()

    def gradient(self, adaptation: Adaptation) -> tuple[Tensor, Adapted]:
        """The meta-gradient ``[param]``, and the adapted tasks."""
        return meta_gradient(self.learner, adaptation, self.objective, self.episode.query)

    def rows(self, name: str, solver: solvers.InnerSolver, systems: list[str]) -> Iterator[Row]:
        phi = solver.minimise(self.objective, self.objective.start()).value
        lowest, highest = self.spectrum(phi)
        with torch.no_grad():
            accuracy = self.learner.judge(phi, self.episode.query)["accuracy"].mean().item()
        unrolled = None
        if isinstance(solver, solvers.GradientDescent):
            unrolled, _ = self.gradient(maml(solver.lr, solver.max_steps, self.proximal.strength().item()))
        for system in systems:
            curvature, linear = SYSTEMS[system] or (None, None)
            given = Given(phi)
            adaptation = (
                Implicit(given, linear, curvature, self.proximal) if linear else FirstOrder(given, self.proximal)
            )
            gradient, adapted = self.gradient(adaptation)
            solved = adapted.linear
            yield {
                "inner": name,
                "stationarity": adapted.stationarity.mean().item(),
                "lowest": lowest,
                "highest": highest,
                "accuracy": accuracy,
                "system": system,
                "residual": solved.residual.mean().item() if solved else math.nan,
                "indefinite": (solved.result == Result.INDEFINITE).double().mean().item() if solved else math.nan,
                "cosine": torch.cosine_similarity(gradient, self.reference, dim=0).item(),
                "length": (gradient.norm() / self.reference.norm()).item(),
                "cosine_maml": math.nan
                if unrolled is None
                else torch.cosine_similarity(gradient, unrolled, dim=0).item(),
            }

    def spectrum(self, phi: Tensor) -> tuple[float, float]:
        """The extremal eigenvalues of ∇²L at ``phi``, over all tasks, by Lanczos' method to about 5 %."""
        found = []
        strength = self.proximal.strength().item()
        for task in range(len(phi)):
            at = self.objective.task(task).linearise(phi[task : task + 1])

            def product(u: np.ndarray, at=at) -> np.ndarray:
                return Hessian().product(at, torch.tensor(u, dtype=phi.dtype).reshape(1, -1))[0].numpy()

            operator = LinearOperator((phi.shape[1],) * 2, matvec=product, dtype=np.float32)
            start = np.random.default_rng(0).normal(size=phi.shape[1])
            found.append(
                eigsh(operator, 2, which="BE", v0=start, ncv=20, tol=0.05, return_eigenvectors=False) - strength
            )
        return float(np.min(found)), float(np.max(found))


def weights(checkpoint: str, filters: int) -> tuple[str, MetaLearner]:
    """A name and a learner: random weights, or those of a checkpoint."""
    if checkpoint == "untrained":
        torch.manual_seed(0)
        return "untrained", MetaLearner(Conv4(filters=filters))
    steps = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    return f"{steps} meta-steps", MetaLearner.load_from_checkpoint(checkpoint, map_location="cpu")


def picture(rows: list[dict[str, str]]) -> Figure:
    """A table for each set of weights and λ: the cosine for every inner solver and linear system."""
    tables = list(dict.fromkeys((row["weights"], row["strength"]) for row in rows))
    counts = [len({r["inner"] for r in rows if (r["weights"], r["strength"]) == table}) for table in tables]
    figure = Figure(figsize=(11, 1.6 + 0.8 * len(tables) + 0.27 * sum(counts)), layout="constrained")
    grid = figure.subplots(len(tables), 1, squeeze=False, height_ratios=[count + 1.5 for count in counts])[:, 0]
    for axes, (name, strength) in zip(grid, tables, strict=True):
        mine = [row for row in rows if (row["weights"], row["strength"]) == (name, strength)]
        inner, systems = (list(dict.fromkeys(row[key] for row in mine)) for key in ("inner", "system"))
        cosine = np.array([float(row["cosine"]) for row in mine]).reshape(len(inner), len(systems))
        axes.imshow(cosine, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
        for (line, column), value in np.ndenumerate(cosine):
            axes.text(
                column,
                line,
                f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 0.85 else "black",
            )
        first = {row["inner"]: row for row in mine}
        labels = [
            "{}   {:.3f}   [{:.1f}, {:.0f}]".format(
                solver, *(float(first[solver][figure]) for figure in ("stationarity", "lowest", "highest"))
            )
            for solver in inner
        ]
        axes.set_yticks(range(len(inner)), labels, fontsize=7)
        axes.set_xticks(range(len(systems)), systems if axes is grid[-1] else [], fontsize=7, rotation=25, ha="right")
        axes.set_title(f"{name}, λ = {strength}", fontsize=9)
    figure.suptitle(
        "cosine to the reference meta-gradient; at the left ‖∇G‖/‖∇L‖ and the extremal eigenvalues of ∇²L", fontsize=9
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=["untrained"], metavar="PATH", help="or untrained")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[2.0, 0.5, 8.0], help="λ; all solvers for the first"
    )
    parser.add_argument("--filters", type=int, default=64, help="of the untrained network")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--reference_steps", type=int, default=400)
    options = parser.parse_args()
    data = omniglot(query=5)
    for checkpoint in options.checkpoints:
        name, learner = weights(checkpoint, options.filters)
        kept: list = [row for row in read("omniglot_gradients") if row["weights"] != name]
        rows: list[Row] = []
        episode = data.episode("train", 10**6, tasks=options.tasks)
        for strength in options.strengths:
            study = Study(learner, episode, strength, options.reference_steps)
            stationarity, residual = study.certificate
            print(f"{name}, λ = {strength:g}: reference at stationarity {stationarity:.2g}, residual {residual:.2g}")
            main_one = strength == options.strengths[0]
            asked = list(INNER) if main_one else list(INNER)[:2]
            asked = {solver: INNER[solver] for solver in asked} | {"reference": Given(study.phi)}
            for solver, one in asked.items():
                found = [
                    {"weights": name, "strength": strength, **row} for row in study.rows(solver, one, list(SYSTEMS))
                ]
                rows += found
                write("omniglot_gradients", kept + rows)
        show(rows)
    save(picture(read("omniglot_gradients")), "omniglot_gradients")


if __name__ == "__main__":
    main()
