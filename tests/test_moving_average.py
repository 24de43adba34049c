"""MovingAverage: the average of a recomputation, in validation, checkpoints and tests; training and resumes untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command import SMALL, run
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from test_resume import assert_same, last
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning.errors import UsageError
from imaml_lightning.run.callbacks import MovingAverage

DECAY = 0.6
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*manual optimization.*",
    "ignore:.*have no `val_dataloader`.*",
    "ignore:Checkpoint directory",
)


class Normalised(LightningModule):
    """A manually optimised network with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 1)).double()
        self.network[2].bias = self.network[0].bias  # tied
        self.network[3].bias.requires_grad_(False)
        self.seen: list[dict[str, Tensor]] = []  # by training, after each step
        self.validated: list[dict[str, Tensor]] = []  # by validation and test

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state_dict().items()}

    def training_step(self, x: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.network(x).square().mean())
        optimizer.step()
        self.seen.append(self.state())

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        self.validated.append(self.state())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def batches() -> DataLoader:
    g = torch.Generator().manual_seed(1)
    return DataLoader([torch.randn(6, 3, generator=g, dtype=torch.float64) for _ in range(8)], batch_size=None)


def fit(
    folder: Path, *callbacks: Callback, validate: bool = True, learner: Normalised | None = None
) -> tuple[Normalised, Trainer]:
    keep = ModelCheckpoint(folder, filename="kept", save_on_train_epoch_end=False)
    options: dict[str, Any] = {"limit_val_batches": 1 if validate else 0, "num_sanity_val_steps": 0}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    learner = learner or Normalised()
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[*callbacks, keep], **quiet, **options)
    trainer.fit(learner, batches(), batches() if validate else None)
    return learner, trainer


def recomputed(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average written out as a weighted sum of all states; counters as they are last."""
    weights = [1.0]
    for n in range(1, len(states)):
        kept = min(DECAY, (1 + n) / (10 + n))
        weights = [w * kept for w in weights] + [1 - kept]
    total = {}
    for name, value in states[-1].items():
        summed = sum(w * state[name] for w, state in zip(weights, states, strict=True))
        total[name] = summed if value.is_floating_point() else value
    return total


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-14)


def test_validation_checkpoints_and_tests_are_of_the_average(tmp_path: Path) -> None:
    learner, trainer = fit(tmp_path, MovingAverage(DECAY))
    first, second = recomputed(learner.seen[:8]), recomputed(learner.seen)
    assert not torch.equal(second["network.1.running_mean"], learner.seen[-1]["network.1.running_mean"])
    for validated, average in zip(learner.validated, (first, second), strict=True):
        assert_close(validated, average)
    checkpoint = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert_close(checkpoint["state_dict"], second)
    assert_same(checkpoint["current_model_state"], learner.seen[-1])
    assert_close(learner.state(), second)  # training is over
    trainer.test(learner, batches(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True, verbose=False)
    assert_close(learner.validated[-1], second)


def test_a_checkpoint_taken_during_validation_or_after_training_knows_which_is_which(tmp_path: Path) -> None:
    class Meddler(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "inside.ckpt")

        def on_train_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    learner, _ = fit(tmp_path, MovingAverage(DECAY), Meddler())
    for name in ("inside", "end"):
        checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert_close(checkpoint["state_dict"], recomputed(learner.seen))
        assert_same(checkpoint["current_model_state"], learner.seen[-1])


def test_nothing_is_copied_besides_tensors(tmp_path: Path) -> None:
    class Holding(Normalised):
        def __deepcopy__(self, memo: Any) -> Normalised:
            raise AssertionError("a learner refers to the trainer and the data")

    learner = fit(tmp_path, MovingAverage(DECAY), learner=Holding())[0]
    assert_close(learner.state(), recomputed(learner.seen))


def test_training_is_as_without_it(tmp_path: Path) -> None:
    plain, averaged = fit(tmp_path)[0], fit(tmp_path, MovingAverage(DECAY))[0]
    assert_same(plain.seen, averaged.seen)
    assert_same(averaged.seen, fit(tmp_path, MovingAverage(DECAY), validate=False)[0].seen)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_without_sense_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="decay of MovingAverage must be at least 0 and below 1"):
        MovingAverage(decay)


AVERAGE = ["--trainer.callbacks+=MovingAverage", "--trainer.callbacks.decay=0.8"]


def test_two_processes_keep_the_average_of_one(tmp_path: Path) -> None:
    states = []
    for options in ([], ["--trainer.devices", "2", "--trainer.strategy", "ddp"]):
        folder = tmp_path / str(len(states))
        folder.mkdir()
        done = run("fit", *SMALL, *AVERAGE, "--trainer.max_steps", "6", *options, folder=folder)
        assert done.returncode == 0, done.stderr
        states.append(last(folder)["state_dict"])
    for name, one in states[0].items():
        torch.testing.assert_close(states[1][name], one, rtol=1e-3, atol=1e-5)


def test_command_line_tests_the_average_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folders = {}
    for name, steps in (("whole", ["12"]), ("parts", ["7", "12"])):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for number, step in enumerate(steps):
            # The average is in the checkpoint's configuration.
            options = ["--ckpt_path", "last", "--name", "sinusoid_5shot"] if number else [*SMALL, *AVERAGE]
            done = run("fit", *options, "--trainer.max_steps", step, folder=folders[name])
            assert done.returncode == 0, done.stderr
    whole, parts = last(folders["whole"]), last(folders["parts"])
    for key in ("global_step", "state_dict", "current_model_state", "optimizer_states"):
        assert_same(whole[key], parts[key])
    name = "network.layers.0.weight"
    assert not torch.equal(whole["state_dict"][name], whole["current_model_state"][name])
    again = run("test", "--ckpt_path", "best", "--name", "sinusoid_5shot", folder=folders["parts"])
    assert next(line for line in done.stdout.splitlines() if line.startswith("test ")) in again.stdout, again.stderr
