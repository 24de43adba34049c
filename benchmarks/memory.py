"""Peak memory of one meta-step against the number of inner steps: it should not grow.

    python benchmarks/memory.py [--steps 1 10 100 1000] [--filters 32] [--tasks 4] [--downsample stride]

Prints a Markdown table and writes benchmarks/results/memory.csv. Linux, CPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "memory.csv"
ENVIRONMENT = {
    # glibc moves these two limits while a program runs, and what it then holds back drowns what the program needs.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}


def resident(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def measure(options: argparse.Namespace, inner_steps: int) -> dict[str, float]:
    """Growth of the peak resident memory over one meta-step, in a process that has done nothing else."""
    import torch

    from imaml_lightning.adaptation import Implicit
    from imaml_lightning.curvature import GaussNewton, Hessian
    from imaml_lightning.episode import Episode, Examples
    from imaml_lightning.inner import GradientDescent
    from imaml_lightning.linear import ConjugateGradient
    from imaml_lightning.meta_learner import MetaLearner
    from imaml_lightning.models import Conv4
    from imaml_lightning.proximal import ProximalTerm

    torch.manual_seed(0)
    curvature = {"gauss_newton": GaussNewton, "hessian": Hessian}[options.curvature]()

    def meta_step(filters: int, steps: int) -> None:
        """What MetaLearner.training_step does between two log lines."""
        inner, linear = GradientDescent(lr=0.05, max_steps=steps), ConjugateGradient(max_steps=5, rtol=0.0)
        network = Conv4(filters=filters, downsample=options.downsample)
        learner = MetaLearner(network, Implicit(inner, linear, curvature, ProximalTerm(2.0)))
        optimizer = torch.optim.Adam(learner.parameters())
        for chunk in episode.chunks(options.chunk):
            adapted = learner.adapted(chunk.support)
            (learner.judge(adapted.phi, chunk.query)["loss"].sum() / episode.tasks).backward()
            del adapted
        optimizer.step()

    def draw(count: int) -> Examples:
        return Examples(torch.rand(options.tasks, 5 * count, 1, 28, 28), torch.arange(5).repeat(options.tasks, count))

    episode = Episode(draw(options.shots), draw(15))
    meta_step(1, 1)  # a network too small to matter loads the libraries that are loaded at first use
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    meta_step(options.filters, inner_steps)
    peak = resident("VmHWM")
    return {"growth_mb": peak - before, "peak_mb": peak}


def in_fresh_process(arguments: list[str], steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments, "--measure", str(steps)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=1, help="tasks solved together")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--downsample", choices=["stride", "max_pool"], default="stride")
    parser.add_argument("--curvature", choices=["gauss_newton", "hessian"], default="gauss_newton")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each number of steps; the median counts")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options, options.measure)))
        return

    import torch

    rows: list[dict[str, float]] = []
    for steps in options.steps:
        runs = [in_fresh_process(sys.argv[1:], steps) for _ in range(options.repeats)]
        row = {"inner_steps": steps} | {name: median(run[name] for run in runs) for name in runs[0]}
        row["difference_percent"] = 100 * (row["growth_mb"] / rows[0]["growth_mb"] - 1) if rows else 0.0
        rows.append(row)

    print(f"{processor()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}; ", end="")
    print(
        f"Conv4 ({options.filters} filters, {options.downsample}), 5-way {options.shots}-shot, 15 queries a class, ",
        end="",
    )
    print(f"{options.tasks} tasks in chunks of {options.chunk}, 5 CG steps ({options.curvature}), ", end="")
    print(f"median of {options.repeats} processes\n")
    print("| inner steps | growth of the peak in one meta-step, MB | against the first | peak of the process, MB |")
    print("|---:|---:|---:|---:|")
    for row in rows:
        growth, difference, peak = row["growth_mb"], row["difference_percent"], row["peak_mb"]
        print(f"| {row['inner_steps']} | {growth:.1f} | {difference:+.1f} % | {peak:.0f} |")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 2) for name, value in row.items()} for row in rows)


if __name__ == "__main__":
    main()
