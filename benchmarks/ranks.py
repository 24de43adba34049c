"""Two single-threaded processes beside one process with two threads: the same training from the command line.

    python benchmarks/ranks.py [--steps 12] [--repeats 3]

Each is a whole ``fit`` on Glyphs with the 64-filter network, in turn; the time of a meta-step is the median of those that the
run itself logs, start and validation left out. Writes benchmarks/results/ranks.csv and .md. CPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from _common import publish

KINDS = {
    "1 process, 1 thread": (1, 1),
    "1 process, 2 threads": (1, 2),
    "2 processes, 1 thread each": (2, 1),
}


def meta_steps(processes: int, threads: int, steps: int) -> list[float]:
    """Seconds of each meta-step of a run, but for the first two."""
    command = [
        *(sys.executable, "-m", "imaml_lightning", "fit", "--model.network.filters", "64", "--data.test_episodes", "2"),
        *("--trainer.max_steps", str(steps), "--data.train_batches", str(steps), "--trainer.log_every_n_steps", "1"),
        *("--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"),
        *("--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        with next(Path(folder).glob("runs/*/*/metrics.csv")).open(newline="") as file:
            times = [row["train/seconds"] for row in csv.DictReader(file)]
    return [float(time) for time in times if time][2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(chosen.repeats):
        for kind, (processes, threads) in KINDS.items():
            times[kind].append(median(meta_steps(processes, threads, chosen.steps)))
    one = median(times["1 process, 1 thread"])
    rows = [
        {"kind": kind, "meta_step_s": median(values), "speed-up": one / median(values)}
        for kind, values in times.items()
    ]
    publish("ranks", rows)


if __name__ == "__main__":
    main()
