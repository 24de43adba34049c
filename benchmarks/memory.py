"""Table 1 of Rajeswaran et al. (2019), measured: memory and work of one meta-step against the number of inner steps.

    python benchmarks/memory.py [--methods implicit MAML ...] [--steps 1 10 100 1000] [--filters 32] [--tasks 4]

Growth of the peak resident memory in a fresh process, gradient evaluations a task, and CPU seconds. MAML keeps every
step, so it stops at --longest steps; truncated keeps the last five. Prints a Markdown table and writes
benchmarks/results/memory.csv and docs/memory.png. Linux, CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

METHODS = ("implicit", "first order", "truncated", "MAML")
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


def measure(options: argparse.Namespace, method: str, inner_steps: int) -> dict[str, float]:
    """Growth of the peak resident memory over one meta-step, in a process that has done nothing else, and its work."""
    import torch
    from _common import CountedObjective, Tally, maml

    from imaml_lightning import Examples, FirstOrder, Implicit, MetaLearner, ProximalTerm
    from imaml_lightning.episode import Episode
    from imaml_lightning.inner import GradientDescent
    from imaml_lightning.linear import ConjugateGradient
    from imaml_lightning.models import Conv4
    from imaml_lightning.problem import GaussNewton, Hessian

    torch.manual_seed(0)
    curvature = {"gauss_newton": GaussNewton, "hessian": Hessian}[options.curvature]()
    tally = Tally()

    def adaptation(steps: int):
        inner = GradientDescent(lr=0.05, max_steps=steps)
        if method == "implicit":
            return Implicit(inner, ConjugateGradient(max_steps=5, rtol=0.0), curvature, ProximalTerm(2.0))
        if method == "first order":
            return FirstOrder(inner, ProximalTerm(2.0))
        return maml(0.05, steps, 2.0, kept=5 if method == "truncated" else None)

    def meta_step(filters: int, steps: int) -> None:
        """What MetaLearner.training_step does between two log lines."""
        learner = MetaLearner(Conv4(filters=filters, downsample=options.downsample), adaptation(steps))
        optimizer = torch.optim.Adam(learner.parameters())
        for chunk in episode.chunks(options.chunk):
            adapted = learner.adaptation(CountedObjective.of(learner.objective(chunk.support), tally))
            (learner.judge(adapted.phi, chunk.query)["loss"].sum() / episode.tasks).backward()
            if adapted.linear is not None:
                tally.products += int(adapted.linear.steps.max())
            del adapted
        optimizer.step()

    def draw(count: int) -> Examples:
        return Examples(torch.rand(options.tasks, 5 * count, 1, 28, 28), torch.arange(5).repeat(options.tasks, count))

    episode = Episode(draw(options.shots), draw(15))
    meta_step(1, 1)  # a network too small to matter loads the libraries that are loaded at first use
    tally.gradients = tally.products = 0
    before, began = resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    meta_step(options.filters, inner_steps)
    seconds, peak = time.process_time() - began, resident("VmHWM")
    work = tally.evaluations / len(list(episode.chunks(options.chunk)))
    return {"growth_mb": peak - before, "peak_mb": peak, "evaluations": work, "seconds": seconds}


def in_fresh_process(arguments: list[str], method: str, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments, "--measure", method, str(steps)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def picture(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, column, label in zip(
        figure.subplots(1, 2),
        ("growth_mb", "evaluations"),
        ("growth of the peak, MB", "gradient evaluations a task"),
        strict=True,
    ):
        for method in METHODS:
            points = [(row["inner_steps"], row[column]) for row in rows if row["method"] == method]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=method)
        axes.set(xscale="log", yscale="log", xlabel="inner steps", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--longest", type=int, default=100, help="inner steps of MAML")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=1, help="tasks solved together")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--downsample", choices=["stride", "max_pool"], default="stride")
    parser.add_argument("--curvature", choices=["gauss_newton", "hessian"], default="gauss_newton")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each number of steps; the median counts")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        method, steps = options.measure
        print(json.dumps(measure(options, method, int(steps))))
        return

    from _common import publish, save

    rows: list[dict] = []
    for method in options.methods:
        for steps in (steps for steps in options.steps if method != "MAML" or steps <= options.longest):
            runs = [in_fresh_process(sys.argv[1:], method, steps) for _ in range(options.repeats)]
            figures = {name: median(run[name] for run in runs) for name in runs[0]}
            first = next((row["growth_mb"] for row in rows if row["method"] == method), figures["growth_mb"])
            more = {"difference_percent": 100 * (figures["growth_mb"] / first - 1)}
            rows.append({"method": method, "inner_steps": steps} | figures | more)

    print(f"Conv4 ({options.filters} filters, {options.downsample}), 5-way {options.shots}-shot, ", end="")
    print(f"15 queries a class, {options.tasks} tasks in chunks of {options.chunk}, ", end="")
    print(f"5 CG steps ({options.curvature}), median of {options.repeats} processes with one thread")
    publish("memory", rows)
    save(picture(rows), "memory")


if __name__ == "__main__":
    main()
