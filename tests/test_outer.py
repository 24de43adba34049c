"""Outer optimizers and schedulers of every kind: they train, or one sentence says why not before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch import cli as lightning_cli
from tiny_learners import images, smooth_conv
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from imaml_lightning import Implicit, MetaLearner, UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.outer import try_step

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)


def fit(steps: int = 4, validate: bool = True, **options: Any) -> tuple[MetaLearner, Trainer]:
    torch.manual_seed(0)
    learner = MetaLearner(smooth_conv(), Implicit(GradientDescent(0.1, 2)), **options).double()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=1, check_val_every_n_epoch=None,
    )  # fmt: skip
    loader = DataLoader([images(seed=i) for i in range(2)], batch_size=None)
    trainer.fit(learner, loader, loader if validate else None)
    return learner, trainer


CANNOT = {"LBFGS": "closure", "SparseAdam": "dense gradients, please"}
OPTIMIZERS = sorted(
    name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name not in ("Optimizer", "Muon")
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_trains_or_is_refused_in_a_sentence(name: str) -> None:
    make = getattr(torch.optim, name)
    if name in CANNOT:
        with pytest.raises(UsageError, match=f"the outer optimizer {name} cannot take a meta-step.*{CANNOT[name]}"):
            fit(optimizer=lambda p: make(p, lr=0.01))
        return
    torch.manual_seed(0)
    before = smooth_conv().double().state_dict()
    learner, _ = fit(2, optimizer=lambda p: make(p, lr=0.01))
    assert any(not torch.equal(before[key], value) for key, value in learner.network.state_dict().items())


def test_trying_a_step_changes_nothing() -> None:
    network = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_step(lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.5), network.parameters())
    try_step(lambda p: torch.optim.SGD(network.parameters(), lr=1.0, weight_decay=0.5), network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.ReduceLROnPlateau(
            o, factor=0.5, patience=0, threshold=10.0, threshold_mode="abs"
        ),  # nothing is an improvement
        lambda o: lightning_cli.ReduceLROnPlateau(
            o, "val/accuracy", mode="max", factor=0.5, patience=0, threshold=10.0, threshold_mode="abs"
        ),
    ],
    ids=["torch", "lightning"],
)
def test_a_plateau_is_judged_after_each_validation(make: Callable[[Any], Any]) -> None:
    learner, _ = fit(4, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), scheduler=make)
    # The first validation is the best so far; the three after it are none better.
    assert learner.optimizers().param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


def test_a_plateau_that_nothing_tells_of_is_refused() -> None:
    with pytest.raises(UsageError, match="waits for val/loss and there is no validation"):
        fit(validate=False, scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o))
    with pytest.raises(UsageError, match=r"waits for val/f1, which validation does not log.*'val/accuracy'"):
        fit(scheduler=lambda o: lightning_cli.ReduceLROnPlateau(o, "val/f1"))


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=10),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.5)]),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
    ),
}


@pytest.mark.filterwarnings("ignore:.*epoch parameter in .*step.*")  # torch's own, in SequentialLR
@pytest.mark.filterwarnings("ignore:.*OneCycleLR.* scheduler is not doing it every step.*")
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_other_schedulers_step_after_every_meta_step(name: str) -> None:
    learner, _ = fit(3, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), scheduler=SCHEDULERS[name])
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = SCHEDULERS[name](alone)
    for _ in range(3):
        alone.step()
        scheduler.step()
    assert learner.optimizers().param_groups[0]["lr"] == alone.param_groups[0]["lr"]
