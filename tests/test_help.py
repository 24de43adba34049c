"""Help that teaches: short, told at once, and true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import refused

from imaml_lightning import __version__
from imaml_lightning.cli import main
from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.cli.configs import shipped, with_first_look, with_paths
from imaml_lightning.cli.export import export_file
from imaml_lightning.cli.help import DATA, EXPORT, FIT, OVERVIEW, PREDICT, TEST
from imaml_lightning.cli.predict_files import predict_files

OPTION = re.compile(r"--([a-z_]+(?:\.[a-z_]+)*)")
NOT_IN_CONFIG = {"config", "help", "print_config", "trust", "model.adaptation.help", "model.network.help"}


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """Every option with its value, of a fit that says no more than its data."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(sys.stdout, "write", said.append)
        with pytest.raises(SystemExit):
            main(["fit", "--data.source", "Glyphs", "--print_config"])
    return yaml.safe_load("".join(said))


def value(options: Any, name: str) -> Any:
    """Of an option as it is named on the command line."""
    for part in name.split("."):
        options = options["init_args"] if part not in options and "init_args" in options else options
        options = options[part]
    return options


def test_the_options_that_help_names_exist_and_have_these_defaults(defaults: dict[str, Any]) -> None:
    with_defaults = 0
    for line in FIT.splitlines():
        names = [
            name for name in OPTION.findall(line) if name not in NOT_IN_CONFIG and not name.startswith("data.source.")
        ]
        found = [value(defaults, name) for name in names]
        said = re.search(r"\[([^\[\]]*)\]$", line)
        if not said or said[1] == "all" or said[1].startswith("5, or"):
            continue
        shown = [str(v["class_path"].rpartition(".")[2] if isinstance(v, dict) else v) for v in found]
        assert ", ".join(shown) == said[1], line
        with_defaults += 1
    assert with_defaults >= 14


def test_help_fits_on_two_screens() -> None:
    for text, most in ((OVERVIEW, 25), (FIT, 60), (TEST, 30), (PREDICT, 30), (EXPORT, 20), (DATA, 10)):
        lines = text.splitlines()
        assert len(lines) <= most
        assert max(map(len, lines)) <= 100


def test_options_of_the_other_commands_exist(defaults: dict[str, Any]) -> None:
    for text in (TEST.replace("{episodes}", "data.val_episodes"), OVERVIEW, DATA):
        for name in OPTION.findall(text):
            if name not in NOT_IN_CONFIG | {"support", "query", "version", "data.source.root"}:
                value(defaults, name)
    for function, text in ((predict_files, PREDICT), (export_file, EXPORT)):
        own = set(inspect.signature(function).parameters)
        assert own <= set(OPTION.findall(text)) <= own | {"help"}


def test_help_needs_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from imaml_lightning.cli import main\n"
        "for args in (['--help'], ['fit', '--help'], ['test', '-h'], ['predict', '--help'], ['export', '--help'], ['data', '--help'], ['--version']):\n"
        "    main(args)\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'wandb'} & sys.modules.keys(), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Meta-learning by implicit MAML")
    assert done.stdout.endswith(f"imaml_lightning {__version__}\n")


@pytest.mark.parametrize(
    ("topic", "told", "left_out"), [("data", "--data.way", "--trainer.max_steps"), ("all", "--data.way", "")]
)
def test_longer_help(topic: str, told: str, left_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help", topic])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert told in said
    assert not left_out or left_out not in said


def test_help_on_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean model?" in refused("fit", "--help", "modle", capsys=capsys)


def test_shipped_configurations_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no configs/
    file = str(shipped()["algorithms/maml"])
    for name in ("algorithms/maml", "algorithms/maml.yaml", "configs/algorithms/maml.yaml"):
        assert with_paths(["fit", "--config", name, "--data.way", "5"]) == ["fit", "--config", file, "--data.way", "5"]
        assert with_paths([f"--config={name}"]) == [f"--config={file}"]
    assert "did you mean omniglot_5w1s" in refused("fit", "--config", "omniglot_5w1", capsys=capsys)
    assert "did you mean omniglot_5w1s" in refused("data", "check", "--config", "omniglot_5w1", capsys=capsys)


def test_a_fit_of_nothing_in_particular_is_the_first_look() -> None:
    look = ["fit", "--config", "letters"]
    for more in ([], ["--name", "mine", "--data.shot=5"], ["--trainer.max_steps", "9", "--data.source_seed"]):
        assert with_first_look(["fit", *more]) == [*look, *more]
    for own in ("--config", "-c", "--config=mine.yaml", "--ckpt_path", "--data.source", "--data.source.init_args.root=a",
                "--data.source.path", "--model.network+=MLP", "--model.optimizer.lr", "--model"):  # fmt: skip
        assert with_first_look(["fit", own, "x"]) == ["fit", own, "x"]
    for command in (["test"], ["predict", "--name", "x"], ["--help"], []):
        assert with_first_look(command) == command


def test_commands_are_those_of_the_command_line() -> None:
    from imaml_lightning.cli.help import COMMANDS

    assert set(COMMANDS) == set(CommandLine.subcommands())
