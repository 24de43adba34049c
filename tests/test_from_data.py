"""What a configuration leaves open follows from the data; what contradicts the data is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused
from PIL import Image
from torch import nn

from imaml_lightning import Episode, EpisodeDataModule, Examples, MetaLearner, UsageError, adapt
from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.data import Tasks
from imaml_lightning.inner import BacktrackingGradientDescent, GradientDescent
from imaml_lightning.learner.criterion import ByTargets, check_criterion
from imaml_lightning.models import MLP, Conv4
from imaml_lightning.run.signals import Signals

QUICK = ["--trainer.fast_dev_run", "true", "--data.tasks", "2", "--data.shot", "2", "--data.query", "2"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 tasks of 12 rows, three features, a value and one of three labels; the labels alone are columns of a copy."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "a", "b", "c", "value", "label"])
        for row in range(240):
            x = rng.normal(size=3)
            rows.writerow([f"t{row // 12}", *x, 100 + x.sum(), ["low", "mid", "high"][row % 3]])
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes of four grey pictures: three are left for training, at most two for validation and test."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for number in range(28):
        folder = root / f"class{number % 7}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(255, size=(24, 24), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def built(*args: str) -> CommandLine:
    """A command line that has taken one meta-step."""
    with Signals() as signals:
        return CommandLine(signals, ["fit", *QUICK, *args])


def of_table(path: Path, target: str, kind: str) -> list[str]:
    source = {"path": str(path), "target": target, "kind": kind, "features": '["a", "b", "c"]'}
    return ["--data.source", "TaskTable", *(f"--data.source.{name}={value}" for name, value in source.items())]


def test_regression_trains_the_squared_error_of_a_network_of_its_size(table: Path) -> None:
    cli = built(*of_table(table, "value", "regression"))
    network = cli.model.network
    assert isinstance(network, MLP)
    assert (network.layers[0].in_features, network.layers[-1].out_features) == (3, 1)
    z, y = torch.randn(2, 7, 1)
    assert torch.equal(cli.model.criterion(z, y), ((z - y) ** 2).mean())
    assert (cli.config.fit.best.monitor, cli.config.fit.best.mode) == ("val/loss", "min")
    saved = cli.config_dump["model"]["network"]
    assert saved["init_args"]["features"] == 3  # what the checkpoint is built of again
    assert cli.model.hparams.network["init_args"]["features"] == 3


def test_labels_of_a_table_give_the_ways(table: Path) -> None:
    cli = built(*of_table(table, "label", "classification"), "--model.network", "MLP", "--model.network.hidden=[7]")
    assert cli.datamodule.training.way == cli.config_dump["data"]["way"] == 3
    assert [layer.out_features for layer in cli.model.network.layers[::2]] == [7, 3]
    assert cli.config.fit.best.monitor == "val/accuracy"


def test_pictures_give_channels_size_and_at_most_as_many_ways_as_there_are_classes(pictures: Path) -> None:
    source = ["--data.source", "ImageFolder", f"--data.source.root={pictures}", "--data.source.size=20"]
    cli = built(*source, "--data.source.channels=1", "--model.network.filters=4")
    assert cli.model.network.body[0].conv.weight.shape == (4, 1, 3, 3)
    assert cli.model.network.head.out_features == cli.datamodule.training.way == 2


def test_what_is_given_stays(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--data.source", "ImageFolder", f"--data.source.root={pictures}", "--data.source.size=20"]
    for given in (["--model.network.channels=1"], ["--model.network.way=4"], ["--data.way=3", "--model.network.way=2"]):
        refused("fit", *QUICK, *source, *given, capsys=capsys)


def test_a_network_that_follows_has_the_weights_of_one_that_is_given(table: Path) -> None:
    source = of_table(table, "value", "regression")
    given = ["--model.network", "MLP", "--model.network.features=3", "--model.network.outputs=1"]
    weights = [built(*source, *options).model.network.state_dict() for options in ([], given)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_way_of_given_tasks_and_of_any_others() -> None:
    x, y = np.zeros((9, 2), np.float32), np.arange(9) % 3
    data = EpisodeDataModule(Tasks({split: [(x, y)] for split in ("train", "val", "test")}), query=1)
    data.setup()
    assert data.training.way == data.evaluation.way == 3
    assert EpisodeDataModule().training.way == 5


CONTRADICTIONS = {
    "cross-entropy of values": (nn.CrossEntropyLoss(), (4, 1), torch.randn(4, 1), "MSELoss"),
    "cross-entropy of two values": (nn.CrossEntropyLoss(), (4, 2), torch.randn(4, 2), "MSELoss"),
    "likelihood of values": (nn.NLLLoss(), (4, 1), torch.randn(4, 1), "MSELoss"),
    "squared error of as many classes as examples": (nn.MSELoss(), (4, 4), torch.arange(4), "CrossEntropyLoss"),
    "absolute error of classes": (nn.L1Loss(), (4, 3), torch.tensor([0, 1, 2, 0]), "CrossEntropyLoss"),
    "one output for two values": (nn.MSELoss(), (4, 1), torch.randn(4, 2), "2 outputs"),
    "three outputs for one value": (ByTargets(), (4, 3), torch.randn(4, 1), "1 outputs"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_loss_of_another_kind_is_refused(case: str) -> None:
    criterion, shape, targets, remedy = CONTRADICTIONS[case]
    with pytest.raises(UsageError, match=remedy):
        check_criterion(criterion, torch.zeros(shape), targets)


def test_losses_that_fit_are_not_refused() -> None:
    shares = torch.randn(4, 3).softmax(1)
    shares[3] = torch.nan  # padding
    check_criterion(nn.CrossEntropyLoss(), torch.zeros(4, 3), shares)
    check_criterion(nn.CrossEntropyLoss(), torch.zeros(4, 3), torch.tensor([0, 1, 2, -100]))
    check_criterion(nn.BCEWithLogitsLoss(), torch.zeros(4, 2), torch.rand(4, 2))


def test_a_learner_and_a_predictor_refuse_a_loss_of_another_kind() -> None:
    x, y = torch.randn(1, 6, 1), torch.randn(1, 6, 1)
    wrong = MetaLearner(MLP(), criterion=nn.CrossEntropyLoss())
    with pytest.raises(UsageError, match="MSELoss"):
        wrong.judge(wrong.flat.vector()[None], Examples(x, y))
    with pytest.raises(UsageError, match="MSELoss"):
        adapt(wrong, x[0], y[0])
    right = MetaLearner(MLP())
    before, after = right.outputs(Episode(Examples(x, y), Examples(x, y)))
    assert ((after - y) ** 2).mean() < ((before - y) ** 2).mean()
    classes = MetaLearner(Conv4(way=3), criterion=nn.MSELoss())
    with pytest.raises(UsageError, match="CrossEntropyLoss"):
        adapt(classes, torch.rand(3, 1, 28, 28), [0, 1, 2])


def test_a_criterion_that_contradicts_the_data_is_refused_before_training(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = of_table(table, "value", "regression")
    assert "MSELoss" in refused("fit", *QUICK, *source, "--model.criterion", "CrossEntropyLoss", capsys=capsys)


def test_own_data_need_no_inner_rate_unless_one_is_given(table: Path, pictures: Path) -> None:
    own = [
        of_table(table, "value", "regression"),
        ["--data.source", "ImageFolder", "--data.source.root", str(pictures)],
    ]
    for source in own:
        solver = built(*source).model.adaptation.inner_solver
        assert isinstance(solver, BacktrackingGradientDescent)
        assert solver.max_steps == 8
    rate = "--model.adaptation.init_args.inner_solver.init_args.lr"
    assert built(*own[1], rate, "0.05").model.adaptation.inner_solver == GradientDescent(0.05, 8)
    assert isinstance(built("--data.source", "Glyphs").model.adaptation.inner_solver, GradientDescent)
