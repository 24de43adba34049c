"""What the studies share: episodes of Omniglot, the cost of a meta-step, and files for their results."""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning import (
    Adaptation,
    EpisodeDataModule,
    Examples,
    InnerObjective,
    InnerSolver,
    MetaLearner,
    ProximalTerm,
    Result,
    Solution,
)
from imaml_lightning.adaptation import Adapted, Unrolled
from imaml_lightning.data import Omniglot
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import Curvature, GaussNewton
from imaml_lightning.problem.objective import LinearisedObjective

RESULTS = Path(__file__).parent / "results"

#: Gradient evaluations that one product with the Gauss-Newton matrix or the Hessian counts for. Measured: 1.2 to 2.2
#: (results/task_chunk_1_threads.csv).
PRODUCT = 2


def omniglot(query: int) -> EpisodeDataModule:
    """5-way 1-shot episodes of the paper's split, from the folder that $IMAML_OMNIGLOT_ROOT names (or ``data``)."""
    root = os.environ.get("IMAML_OMNIGLOT_ROOT", "data")
    return EpisodeDataModule(Omniglot(root, download=True, splits="random"), query=query, eval_query=15)


def write(name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows, four digits of each figure, to results/<name>.csv."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: short(value) for key, value in row.items()} for row in rows)


def read(name: str) -> list[dict[str, str]]:
    """The rows of results/<name>.csv, if there is one."""
    if not (RESULTS / f"{name}.csv").exists():
        return []
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def short(value: object) -> object:
    """Numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def machine() -> str:
    """Processor or GPU, threads and versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{gpu}{name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table, four digits of each figure."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(str(short(v)) for v in row.values()) + " |" for row in rows)])


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a Markdown table, with the machine they were measured on."""
    print(f"{machine()}\n\n{table(rows)}")


def publish(name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Show the rows, and write them to results/<name>.csv and, with the command and the machine, results/<name>.md."""
    show(rows)
    write(name, rows)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]  # no folder of this machine
    (RESULTS / f"{name}.md").write_text(f"    python {' '.join(words)}\n\n{machine()}\n\n{table(rows)}\n")


def save(figure: Figure, name: str) -> None:
    """The picture docs/<name>.png."""
    path = RESULTS.parents[1] / "docs" / f"{name}.png"
    figure.savefig(path, dpi=110)
    print(path)


@dataclass
class Tally:
    """Gradient evaluations and curvature products that were made for a chunk of tasks."""

    gradients: int = 0
    products: int = 0

    @property
    def evaluations(self) -> int:
        """Both together, a product counted as ``PRODUCT`` gradients."""
        return self.gradients + PRODUCT * self.products


@dataclass(frozen=True, eq=False)
class CountedObjective(InnerObjective):
    """An objective that keeps a tally. A gradient that is differentiated again costs one product more, on the way back."""

    tally: Tally | None = None

    @staticmethod
    def of(objective: InnerObjective, tally: Tally) -> CountedObjective:
        """The same objective, counted from now on."""
        return CountedObjective(**{each.name: getattr(objective, each.name) for each in fields(objective)}, tally=tally)

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        self.tally.gradients += 1
        return super().value_and_gradient(phi)

    def linearise(self, phi: Tensor) -> LinearisedObjective:
        self.tally.gradients += 1
        return super().linearise(phi)

    def gradient(self, phi: Tensor) -> Tensor:
        self.tally.gradients += 1
        self.tally.products += 1
        return super().gradient(phi)


@dataclass(frozen=True)
class Given(InnerSolver):
    """φ that has been found already."""

    phi: Tensor

    def minimise(self, objective: InnerObjective, start: Tensor) -> Solution:
        zero = torch.zeros(len(start), dtype=start.dtype)
        return Solution(self.phi, zero.long() + Result.STEP_LIMIT, zero.long(), zero, zero)


@dataclass(frozen=True)
class CountedCurvature(Curvature):
    """Another curvature that keeps a tally."""

    curvature: Curvature = GaussNewton()  # noqa: RUF009 (it is immutable)
    tally: Tally | None = None

    def _product(self, at: LinearisedObjective, u: Tensor) -> Tensor:
        self.tally.products += 1
        return self.curvature.product(at, u)


def maml(lr: float, steps: int, strength: float, kept: int | None = None) -> Unrolled:
    """Gradient descent on the proximal objective, differentiated through the last ``kept`` steps (all: MAML)."""
    return Unrolled(SGD(lr), steps, backward_steps=kept, proximal=ProximalTerm(strength))


def meta_gradient(
    learner: MetaLearner, adaptation: Adaptation, objective: InnerObjective, query: Examples
) -> tuple[Tensor, Adapted]:
    """The gradient ``[param]`` of the mean query loss in all of the network's parameters, and the adapted tasks."""
    adapted = adaptation(objective)
    loss = learner.judge(adapted.phi, query)["loss"].mean()
    gradients = torch.autograd.grad(loss, list(learner.network.parameters()))
    return torch.cat([g.flatten() for g in gradients]), adapted
