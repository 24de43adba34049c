"""What the Trainer's precisions do to the meta-gradient, and to its time.

    python benchmarks/precision.py [--settings 5w1s] [--device cuda]

One meta-gradient of iMAML under each precision, from the same weights and episode, against that in float64: cosine,
relative error, and the mean linear residual, which CG reached in its five steps. As under the Trainer, the network runs under autocast in
the mixed precisions, while φ, residuals and linear algebra stay float32. Writes benchmarks/results/precision.csv and .md.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from _common import publish
from _speed import SETTINGS, Setting, in_turn, options
from torch import Tensor
from torch.nn.functional import cosine_similarity

from imaml_lightning import Episode, Examples, MetaLearner

PRECISIONS = {"64-true": None, "32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def measure(setting: Setting, chosen: argparse.Namespace) -> list[dict[str, object]]:
    episode = setting.episode(chosen.tasks or setting.tasks, chosen.query, chosen.device)
    found: dict[str, Tensor] = {}
    residuals: dict[str, float] = {}

    def meta_step(precision: str) -> None:
        torch.manual_seed(0)
        learner = MetaLearner(setting.network(), setting.adaptation()).to(chosen.device)
        kind = torch.float64 if precision == "64-true" else torch.float32
        learner = learner.to(kind)
        given = Episode(*(Examples(part.x.to(kind), part.y) for part in episode))
        half = PRECISIONS[precision]
        with torch.autocast(chosen.device, half) if half else contextlib.nullcontext():
            adapted = learner.adapted(given.support)
            learner.judge(adapted.phi, given.query)["loss"].sum().backward()
        found[precision] = torch.cat([p.grad.flatten() for p in learner.network.parameters()]).double()
        residuals[precision] = adapted.linear.residual.mean().item()

    usable = [p for p in PRECISIONS if chosen.device == "cuda" or p != "16-mixed"]  # float16 is for GPUs
    times = in_turn({precision: (lambda p=precision: meta_step(p)) for precision in usable}, chosen.repeats)
    exact = found["64-true"]
    return [
        {
            "setting": setting.name,
            "precision": precision,
            "cosine": cosine_similarity(found[precision], exact, dim=0).item(),
            "relative_error": ((found[precision] - exact).norm() / exact.norm()).item(),
            "linear_residual": residuals[precision],
            "seconds": times[precision],
        }
        for precision in usable
    ]


def main() -> None:
    chosen = options(__doc__, settings=["5w1s"]).parse_args()
    torch.set_num_threads(chosen.threads)
    rows = [row for name in chosen.settings for row in measure(SETTINGS[name], chosen)]
    publish("precision", rows)


if __name__ == "__main__":
    main()
