"""None of these: the errors that a predictor's threshold says it makes, and those that it makes.

    python benchmarks/none_of_these.py --body runs/letters/000/best.ckpt

Tasks of 5 test characters of Omniglot with some examples each, asked about others of these and about 5 characters that are none of
them. The body and the head are those of the letters (see backbone.py): nothing is trained here.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import publish
from backbone import as_the_letters_left_it, omniglot
from torch import Tensor

from imaml_lightning import EpisodeDataModule, adapt
from imaml_lightning.evaluation import none_of_these
from imaml_lightning.run.callbacks.feature_bank import keep_features

WAY, QUERY = 5, 10


def ranked(known: Tensor, unknown: Tensor) -> float:
    """The share of pairs of which the known example has the higher score (the area under the ROC curve)."""
    return float((known[:, None] > unknown).double().mean())


def measured(body: str, shot: int, tasks: int) -> dict[str, object]:
    """Means over tasks, and half-widths of their 95 % intervals."""
    learner, source = as_the_letters_left_it(body).eval(), omniglot()
    data = EpisodeDataModule(source, eval_way=2 * WAY, eval_shot=shot, eval_query=QUERY)
    data.features = keep_features(learner, EpisodeDataModule(source))
    found = []
    for number in range(tasks):
        support, query = data.given("test", number)
        mine, asked = support.y[0] < WAY, query.y[0] < WAY
        predictor = adapt(learner, support.x[0][mine], support.y[0][mine])
        threshold = none_of_these(predictor)
        sure = predictor(query.x[0]).amax(1)
        known, unknown = sure[asked], sure[~asked]
        missed, taken = (
            (known < threshold.probability).double().mean(),
            (unknown >= threshold.probability).double().mean(),
        )
        found.append([threshold.missed, float(missed), threshold.taken, float(taken), ranked(known, unknown)])
    means, halves = np.mean(found, 0), 1.96 * np.std(found, 0) / tasks**0.5
    names = ["turned away, said", "turned away", "taken, said", "taken", "area under ROC"]
    said = {name: f"{100 * mean:.1f} ± {100 * half:.1f}" for name, mean, half in zip(names, means, halves, strict=True)}
    return {"setting": f"{WAY}w{shot}s", "tasks": tasks} | said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body", required=True, help="best.ckpt of fit --config letters.")
    parser.add_argument("--tasks", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    publish("none_of_these", [measured(chosen.body, shot, chosen.tasks) for shot in (2, 5, 10)])


if __name__ == "__main__":
    main()
