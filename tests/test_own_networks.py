"""Networks of the user's own, from training to prediction: named on the command line, or given in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused
from lightning.pytorch import Trainer
from own_networks import Wide
from PIL import Image
from torch import nn

from imaml_lightning import EpisodeDataModule, MetaLearner, UsageError, adapt, load
from imaml_lightning.adaptation import Implicit
from imaml_lightning.cli import main
from imaml_lightning.evaluation import load_data
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import Conv4, LearnedLoss

SMALL = ["--data.tasks=2", "--data.train_batches=2", "--data.val_episodes=2", "--data.test_episodes=2"]
QUICK = ["--trainer.max_steps=2", "--trainer.logger=false", "--trainer.accelerator=cpu", *SMALL]


@pytest.fixture(scope="module", params=["own_networks.wide", "own_networks.Wide"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that the command line was given by a function, or by its class."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--trust", "own_networks", "--model.network", request.param, "--data.way=3", *QUICK])
    return folder / "runs/letters/000/best.ckpt"


def test_a_function_is_as_good_as_a_class(checkpoint: Path) -> None:
    learner = load(checkpoint, trust=["own_networks"])
    assert isinstance(learner.network, Wide)
    assert learner.network[3].out_features == 3  # followed --data.way


def test_every_command_can_be_trusted_and_refuses_by_itself(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("support/a", "support/b", "query"):
        Path(folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(255, size=(28, 28), dtype=np.uint8)).save(f"{folder}/{number}.png")
    commands = (["test"], ["predict"], ["predict", "--support", "support", "--query", "query"])
    for command in commands:
        main([*command, "--trust", "own_networks", "--ckpt_path", str(checkpoint)])
    assert Path("predictions.csv").is_file()
    with pytest.raises(UsageError, match=r"name its package in trust=\[…\]"):
        load(checkpoint)
    learner, data = (read(checkpoint, trust=["own_networks"]) for read in (load, load_data))
    assert (type(learner.network), data.training.way) == (Wide, 3)


@pytest.mark.parametrize("command", [["fit"], ["data", "check"]])
def test_a_class_of_another_package_is_not_imported(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    option = "--model.network" if command == ["fit"] else "--data.source"
    said = refused(*command, option, "antigravity.Nothing", capsys=capsys)
    assert said.endswith("add --trust antigravity if you trust that package")


def saved(learner: MetaLearner, folder: Path) -> Path:
    """A checkpoint that Lightning's own Trainer wrote in Python."""
    data = EpisodeDataModule(way=3, query=2, tasks=2, train_batches=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(learner, data)
    trainer.save_checkpoint(folder / "python.ckpt", weights_only=True)
    return folder / "python.ckpt"


def answers(learner: MetaLearner) -> torch.Tensor:
    episode = EpisodeDataModule(way=3, query=2).episode("test", 0, tasks=2)
    return learner.eval().outputs(episode)[1]


def test_parts_that_were_objects_are_asked_for_by_name(tmp_path: Path) -> None:
    learner = MetaLearner(
        Wide(3), Implicit(GradientDescent(lr=0.3, max_steps=2)), support_criterion=LearnedLoss(nn.CrossEntropyLoss())
    )
    path = saved(learner, tmp_path)
    with pytest.raises(UsageError, match=r"network=…, adaptation=…, support_criterion=…"):
        load(path)
    parts = {"network": Wide(3), "adaptation": Implicit(GradientDescent(lr=0.3, max_steps=2))}
    with pytest.raises(UsageError, match=r"its support_criterion \(LearnedLoss\)"):
        load(path, **parts)
    assert torch.equal(
        answers(load(path, **parts, support_criterion=LearnedLoss(nn.CrossEntropyLoss()))), answers(learner)
    )


def test_defaults_need_not_be_given_again(tmp_path: Path) -> None:
    learner = MetaLearner(Conv4(way=3, filters=4))
    path = saved(learner, tmp_path)
    with pytest.raises(UsageError, match=r"load\(path, network=…\)"):
        load(path)
    again = load(path, network=Conv4(way=3, filters=4))
    assert torch.equal(answers(again), answers(learner))
    assert adapt(again, torch.rand(3, 1, 28, 28), ["a", "b", "c"])(torch.rand(2, 1, 28, 28)).shape == (2, 3)


def test_another_network_is_refused_and_an_edited_one_warned_of(tmp_path: Path) -> None:
    network = Wide(3)
    network[2] = nn.LeakyReLU(0.2)
    path = saved(MetaLearner(network), tmp_path)
    with pytest.raises(UsageError, match="of another network"):
        load(path, network=Wide(3, width=9))
    with pytest.warns(UserWarning, match="LeakyReLU"):
        load(path, network=Wide(3))
