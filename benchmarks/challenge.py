"""Errors on the Omniglot challenge's 20 official runs, transductive and not.

    python benchmarks/challenge.py runs/all/000/best.ckpt runs/small1/000/best.ckpt ...

Checkpoints are those of ``fit --config configs/benchmarks/omniglot_challenge.yaml``. Inductive: each test drawing by itself; where a
network normalises by the batch at hand, in a batch with the support set only, and such a network has a transductive figure too:
the 20 test drawings of a run normalised together. Writes benchmarks/results/challenge.csv and .md.
"""

from __future__ import annotations

import argparse

import torch
from _common import publish

from imaml_lightning.data import OmniglotChallenge
from imaml_lightning.evaluation import all_at_once, evaluate, load, load_data, one_at_a_time

RUNS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    torch.set_num_threads(1)
    rows = []
    for path in parser.parse_args().checkpoints:
        learner, data = load(path), load_data(path)
        assert isinstance(data.source, OmniglotChallenge)
        row: dict[str, object] = {"background": data.source.background}
        row["meta-steps"] = torch.load(path, weights_only=True)["global_step"]
        apart = learner.protocol == "transductive"
        answers = {"inductive": one_at_a_time, "transductive": all_at_once} if apart else {"inductive": all_at_once}
        row |= dict.fromkeys(("error_inductive", "ci95_inductive", "error_transductive", "ci95_transductive"), "")
        for protocol, answer in answers.items():
            mean, interval = evaluate(learner, data, "test", RUNS, answer).mean()
            row |= {f"error_{protocol}": 100 * (1 - mean), f"ci95_{protocol}": 100 * interval}
        rows.append(row)
    publish("challenge", rows)


if __name__ == "__main__":
    main()
