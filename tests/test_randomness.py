"""Networks that draw random numbers: a run repeats and resumes bit for bit, and every derivative is of one function."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_learners import gradients, points
from torch import Tensor, nn

from imaml_lightning import EpisodeDataModule, Implicit, MetaLearner
from imaml_lightning.adaptation import Adaptation, Unrolled
from imaml_lightning.data import Sinusoid
from imaml_lightning.inner import GradientDescent
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import FiniteDifference, Hessian
from imaml_lightning.problem.randomness import draws, seeded
from imaml_lightning.run.callbacks import Compiled

CPU = torch.device("cpu")
quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)


class NumPyNoise(nn.Module):
    """Noise from NumPy's and Python's generators, in training and in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(1 + 0.1 * np.random.randn() + 0.1 * random.random())


class WeightNoise(nn.Module):
    """Noise from torch's generator, in training and in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * torch.randn_like(x))


RANDOM = {"dropout": lambda: nn.Dropout(0.5), "noise": NumPyNoise, "always": WeightNoise}


def network(kind: str = "dropout", inputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 20), nn.Softplus(), RANDOM[kind](), nn.Linear(20, 1))


class Draws(Callback):
    """A user's own code between meta-steps, which draws as well."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(3), np.random.rand(), random.random()


def fit(
    steps: int,
    kind: str = "dropout",
    adaptation: Adaptation | None = None,
    path: Path | None = None,
    every: int = 1,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> tuple[Trainer, dict[str, Tensor]]:
    torch.manual_seed(0)
    learner = MetaLearner(network(kind), adaptation or Implicit(GradientDescent(0.01, 3)), nn.MSELoss(), task_chunk=2)
    data = EpisodeDataModule(Sinusoid(), shot=5, query=5, tasks=4, train_batches=6, val_episodes=4, eval_query=5)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, log_every_n_steps=every, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(learner, data, ckpt_path=path, weights_only=True)
    return trainer, {name: p.detach().clone() for name, p in learner.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name in one:
        assert torch.equal(one[name], other[name]), name


@quiet
@pytest.mark.parametrize("kind", list(RANDOM))
@pytest.mark.parametrize(
    "adaptation",
    [Implicit(GradientDescent(0.01, 3)), Unrolled(SGD(0.01), 3, checkpoint=True)],
    ids=["implicit", "checkpointed"],
)
def test_a_resume_repeats_the_draws_bit_for_bit(kind: str, adaptation: Adaptation, tmp_path: Path) -> None:
    _, whole = fit(8, kind, adaptation)
    first, half = fit(4, kind, adaptation, callbacks=(Draws(),))
    first.save_checkpoint(tmp_path / "half.ckpt")
    assert any(not torch.equal(half[name], whole[name]) for name in half)
    torch.rand(17)  # the process that resumes is not where the first one was
    _, resumed = fit(8, kind, adaptation, path=tmp_path / "half.ckpt")
    assert_same(resumed, whole)


@quiet
def test_validation_logging_and_own_code_change_no_draw() -> None:
    _, plain = fit(7, "noise", every=100, limit_val_batches=0)
    _, watched = fit(7, "noise", every=1, check_val_every_n_epoch=None, val_check_interval=2, callbacks=(Draws(),))
    assert_same(plain, watched)


@quiet
def test_the_seed_is_the_users() -> None:
    with pytest.MonkeyPatch.context() as patch:
        _, one = fit(2)
        patch.setattr(torch, "initial_seed", lambda: 5)
        _, other = fit(2)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@quiet
def test_the_users_generators_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with seeded(CPU, 1, 2):
        inside = torch.rand(2), np.random.rand(), random.random()
    after = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert torch.equal(after[0], torch.rand(2))
    assert after[1:] == (np.random.rand(), random.random())
    with seeded(CPU, 1, 2):
        assert torch.equal(inside[0], torch.rand(2))
        assert inside[1:] == (np.random.rand(), random.random())
    with seeded(CPU, 1, 3):
        assert not torch.equal(inside[0], torch.rand(2))


def test_what_draws_is_known() -> None:
    x = torch.randn(4, 1)
    for kind in RANDOM:
        net = network(kind)
        assert draws(CPU, lambda net=net: net(x))
        assert draws(CPU, lambda net=net: net.eval()(x)) == (kind != "dropout")


def test_finite_differences_are_of_one_draw() -> None:
    torch.manual_seed(0)
    learner = MetaLearner(network(inputs=2), criterion=nn.MSELoss()).double()
    support = points().support
    at = learner.objective(support).linearise(learner.flat.vector().expand(3, -1))
    u = torch.randn(3, sum(learner.flat.sizes), dtype=torch.float64)
    torch.rand(5)
    exact, differences = Hessian().product(at, u), FiniteDifference().product(at, u)
    torch.testing.assert_close(differences, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", list(RANDOM))
def test_a_checkpointed_segment_draws_the_same_again(kind: str) -> None:
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        learner = MetaLearner(network(kind, 2), Unrolled(SGD(0.1), 4, checkpoint=checkpoint), nn.MSELoss()).double()
        with seeded(CPU, 4):
            found.append(gradients(learner, points()))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-10, atol=1e-12)


@quiet
def test_what_draws_is_not_compiled() -> None:
    _, plain = fit(2)
    with pytest.warns(UserWarning, match="nothing is compiled, because the network draws random numbers"):
        _, with_callback = fit(2, callbacks=(Compiled("eager"),))
    assert_same(plain, with_callback)
