"""Cases of test_reach.py, trained on as many ranks as asked for: ``python reach_cases.py RANKS FILE`` writes what was learned."""

from __future__ import annotations

import sys
from typing import Any

import imaml_lightning  # noqa: F401  # isort: skip  (it repairs what Lightning imports)
import torch
from lightning.pytorch import Trainer
from tiny_learners import Temperature, smooth_conv
from torch import Tensor, nn

from imaml_lightning import Episode, EpisodeDataModule, Examples, MetaLearner
from imaml_lightning.adaptation import FirstOrder, Implicit, Reptile, Unrolled
from imaml_lightning.data import EpisodeSource
from imaml_lightning.inner import GradientDescent
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.proximal import ProximalTerm

RAW = "adaptation.proximal.raw"


class Spare(nn.Module):
    """The smooth convolution network with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = smooth_conv(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def learned(strength: float = 2.0) -> ProximalTerm:
    return ProximalTerm(strength, learn=True)


CASES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "first order, learned strength": (lambda: FirstOrder(GradientDescent(0.1, 2), learned()), {}, {RAW}),
    "Reptile, learned strength": (lambda: Reptile(SGD(0.1), 2, proximal=learned()), {}, {RAW}),
    "first order, learned loss": (
        lambda: FirstOrder(GradientDescent(0.1, 2)),
        {"support_criterion": Temperature},
        {"support_criterion.log_rate"},
    ),
    "unused layer, not adapted": (
        lambda: Implicit(GradientDescent(0.1, 2)),
        {"network": Spare, "adapt": ["used.*"]},
        {"network.spare.weight", "network.spare.bias"},
    ),
    "all reached": (lambda: Implicit(GradientDescent(0.1, 2), proximal=learned()), {}, set()),
    "maml, truncated": (lambda: Unrolled(SGD(0.1), 2, backward_steps=0, proximal=learned()), {}, {RAW}),
}


class Fixed(EpisodeSource):
    """Random images."""

    task, shape = "classification", (1, 4, 4)

    def sample(self, split, rngs, way, shot, query):
        x = torch.stack([torch.from_numpy(rng.normal(size=(15, 1, 4, 4))).float() for rng in rngs])
        y = torch.arange(3).repeat(len(rngs), 5)
        return Episode(Examples(x[:, :6], y[:, :6]), Examples(x[:, 6:], y[:, 6:]))


def learn(case: str, ranks: int, steps: int) -> tuple[dict[str, Tensor], set[str]]:
    """What the case learns, and the parameters of which it was said that no gradient reaches them."""
    adaptation, options, _ = CASES[case]
    torch.manual_seed(0)
    options = {"network": smooth_conv} | options
    options = {name: make() if callable(make) else make for name, make in options.items()}
    learner = MetaLearner(
        adaptation=adaptation(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
        task_chunk=1,
        **options,
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
    )  # fmt: skip
    trainer.fit(learner, EpisodeDataModule(Fixed(), way=3, shot=2, query=3, tasks=4, train_batches=4))
    return learner.state_dict(), learner.unreached


if __name__ == "__main__":
    found = {(case, steps): learn(case, int(sys.argv[1]), steps) for case in CASES for steps in (1, 3)}
    torch.save(found, f"{sys.argv[2]}.{torch.distributed.get_rank()}")
