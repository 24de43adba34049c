"""Time and memory of a meta-step against the number of tasks: iMAML with the paper's solvers.

    python benchmarks/task_batch.py [--settings 5w1s] [--sizes 1 4 16 64 256] [--device cuda]

Tasks are solved together as task_chunk's ``auto`` has it. Memory is the peak's growth over the run so far: resident memory on
a CPU, allocated memory on a GPU. Writes benchmarks/results/task_batch.csv and .md.
"""

from __future__ import annotations

import torch
from _common import publish
from _speed import SETTINGS, in_turn, options

from imaml_lightning import MetaLearner
from imaml_lightning.cli.freed_memory import keep_freed_memory
from imaml_lightning.learner.chunks import CPU_CHUNK
from imaml_lightning.learner.memory import peak_memory


def main() -> None:
    parser = options(__doc__, settings=["5w1s"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="tasks of a meta-step")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    rows = []
    for setting in (SETTINGS[name] for name in chosen.settings):
        torch.manual_seed(0)
        learner = MetaLearner(setting.network(), setting.adaptation()).to(chosen.device)
        for tasks in sorted(chosen.sizes):
            episode = setting.episode(tasks, chosen.query, chosen.device)

            def meta_step(episode=episode, learner=learner) -> None:
                learner.zero_grad()
                for chunk in episode.chunks(CPU_CHUNK if chosen.device == "cpu" else None):
                    learner.judge(learner.adapted(chunk.support).phi, chunk.query)["loss"].sum().backward()

            time = in_turn({"meta-step": meta_step}, chosen.repeats)["meta-step"]
            rows.append(
                {
                    "setting": setting.name,
                    "tasks": tasks,
                    "seconds": time,
                    "ms_a_task": 1000 * time / tasks,
                    "peak_mb": peak_memory(learner.device),
                }
            )
    publish("task_batch", rows)


if __name__ == "__main__":
    main()
