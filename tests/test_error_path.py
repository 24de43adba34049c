"""One error path: whatever a person mistypes ends with one sentence that names the option, and status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import SMALL, refused

from imaml_lightning.cli import main
from imaml_lightning.cli.arguments import class_first

TABLE = ["--data.source", "TaskTable", "--data.source.path", "x.csv"]

MISTYPED = {
    "nothing": ([], "there is no command: give fit"),
    "no command": (["fitt"], "did you mean fit?"),
    "an option before the command": (["--data.way", "5", "fit"], "--data.way is no command"),
    "data alone": (["data"], "give data check"),
    "data with another word": (["data", "chek"], "give data check"),
    "an option of no command": (["fit", "--trainer.max_stepz", "3"], "did you mean --trainer.max_steps"),
    "an option without its value": (["fit", "--name"], "--name expected one argument"),
    "a word": (["fit", "plants"], "plants is not an option"),
    "a number": (["fit", "--data.way", "many"], "--data.way cannot be many: give a whole number"),
    "a number deep within": (
        ["fit", "--model.adaptation.inner_solver.lr", "fast"],
        "--model.adaptation.inner_solver.lr cannot be fast: give a number",
    ),
    "a choice": (
        ["fit", *TABLE, "--data.source.target=y", "--data.source.kind=u"],
        "one of classification, regression",
    ),
    "a class": (["fit", "--model.adaptation.inner_solver", "Nestrov"], "did you mean Nesterov"),
    "a class of torch": (["fit", "--model.optimizer", "Adan"], "did you mean Adam"),
    "a class that nothing is like": (["fit", "--model.network", "Xyzzy"], "names no class that there is, Xyzzy"),
    "an option of a class": (["fit", "--model.network", "MLP", "--model.network.hiddn", "[8]"], "did you mean hidden?"),
    "an option of another class": (["fit", "--data.source.path", "x.csv"], "choose another class by --data.source"),
    "what a class needs": (["fit", *TABLE], "give --data.source.target"),
    "data check: an option": (["data", "check", "--data.wayy", "5"], "did you mean --data.way"),
    "data check: a number": (["data", "check", "--data.way", "many"], "give a whole number"),
    "data check: what a class needs": (["data", "check", *TABLE], "give --data.source.target"),
    "data check: no such file": (["data", "check", "--config", "x.yaml"], "--config x.yaml does not exist"),
    "data check: refused by a constructor": (
        ["data", "check", "--data.shot", "0"],
        "shot must be at least 1, got 0: set --data.shot",
    ),
    "predict: what it needs": (["predict", "--support", "x"], "give --ckpt_path and --query"),
    "predict: an option": (["predict", "--support", "x", "--quary", "y"], "did you mean --query"),
    "predict: no such file": (["predict", "--support=x", "--query=y", "--ckpt_path=z"], "checkpoint z does not exist"),
    "missing YAML": (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "way 1": (["fit", "--data.way", "1"], "--data.way"),
    "too many ways": (["fit", "--data.way", "5000"], "5000"),
    "too many images": (["fit", "--data.shot", "10", "--data.query", "15"], "20"),
    "strength 0": (["fit", "--model.adaptation.init_args.proximal.init_args.strength", "0"], "strength"),
    "missing checkpoint": (["test", "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    "no last": (["fit", "--ckpt_path", "last"], "--name"),
    "unknown figure": (["fit", "--best.monitor", "val/acc"], "use --best.monitor val/accuracy"),
    "figure of classes": (["fit", *SMALL, "--best.monitor", "val/accuracy"], "use --best.monitor val/loss"),
    "the worst for the best": (["fit", "--best.monitor", "val/loss", "--best.mode", "max"], "use --best.mode min"),
    "unknown class": (["fit", "--model.network", "NoSuchNetwork"], "NoSuchNetwork"),
}


@pytest.mark.parametrize("case", MISTYPED)
def test_what_is_mistyped(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args, said = MISTYPED[case]
    assert said in refused(*args, capsys=capsys)
    assert not list(tmp_path.iterdir())


def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["data", "--help"]):
        main(args)
        assert "data check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("--a.b.c 1 --a.b X", "--a.b X --a.b.c 1"),
        ("--a.b.c=1 --z -1 --a.b=X --y", "--a.b=X --a.b.c=1 --z -1 --y"),
        ("--a.b.init_args.c 1 --a.b.class_path X", "--a.b.class_path X --a.b.init_args.c 1"),
        ("--a.b.c 1 --a.b.d.e 2 --a.b.d Y --a.b X", "--a.b X --a.b.c 1 --a.b.d Y --a.b.d.e 2"),
        ("--a.b X --a.b.c 1 --a.b Y", "--a.b X --a.b.c 1 --a.b Y"),  # an option of X, and then another class
        ("--a.bc 1 --a.b X", "--a.bc 1 --a.b X"),
        ("fit --config f --a.b.c 1", "fit --config f --a.b.c 1"),
    ],
)
def test_a_class_comes_before_its_options(given: str, ordered: str) -> None:
    assert class_first(given.split()) == ordered.split()


def test_the_order_of_options_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["fit"], ["data", "check"]):
        options = ["--data.source.path=x.csv", "--data.source.target=y", "--data.source", "TaskTable"]
        assert "x.csv does not exist" in refused(*command, *options, capsys=capsys, status=3)
