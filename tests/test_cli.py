"""The command line: one command trains, tests and leaves a checkpoint that knows how it was made."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from command import CONFIGS, SMALL, refused, run
from tiny_data import write_omniglot_root

from imaml_lightning import EpisodeDataModule, MetaLearner
from imaml_lightning.cli import main
from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.evaluation.protocols import evaluate, one_at_a_time
from imaml_lightning.learner.checkpoint import CONFIG_KEY
from imaml_lightning.models import Conv4
from imaml_lightning.run.signals import Signals


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a small ``fit`` was run, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("fit", *SMALL, "--trainer.max_steps", "12", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_fit_tests_the_best_checkpoint_and_says_where_everything_lies(trained: tuple[Path, str]) -> None:
    folder, out = trained
    best = "runs/sinusoid_5shot/000/best.ckpt"
    assert f"evaluate again  python -m imaml_lightning test --ckpt_path {best}" in out
    assert (folder / best).is_file()
    for name in ("last.ckpt", "learning.png", "episode.png"):
        assert (folder / "runs/sinusoid_5shot/000" / name).stat().st_size > 0
    again = run("test", "--ckpt_path", best, folder=folder)
    figure = next(line for line in out.splitlines() if line.startswith("test "))
    assert figure in again.stdout  # the same figure from the checkpoint alone
    assert run("test", "--name", "sinusoid_5shot", "--ckpt_path", "best", folder=folder).stdout == again.stdout


def test_one_command_tests_several_settings(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    best = ["test", "--ckpt_path", "runs/sinusoid_5shot/000/best.ckpt"]

    def figures(*options: str) -> dict[str, str]:
        lines = run(*best, *options, folder=folder).stdout.splitlines()
        return {line[:15].strip(): line[15:] for line in lines if line.startswith("test ")}

    together = figures("--data.eval_settings", "[5s, 10s]")
    assert together == {"test 5s": figures()["test"], "test 10s": figures("--data.eval_shot", "10")["test"]}


def test_checkpoint_holds_plain_types_and_its_configuration(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    run_folder = folder / "runs/sinusoid_5shot/000"
    checkpoint = torch.load(run_folder / "best.ckpt", weights_only=True)
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert checkpoint[CONFIG_KEY] == config
    assert config["model"]["network"]["init_args"]["hidden"] == [8]
    assert config["trainer"]["max_steps"] == 12
    learner = MetaLearner.load_from_checkpoint(run_folder / "best.ckpt")
    assert learner.network.layers[0].out_features == 8
    assert learner.adaptation.inner_solver.max_steps == 3


def test_csv_and_wandb_hold_every_figure(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    run_folder = folder / "runs/sinusoid_5shot/000"
    with (run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {
        *(
            f"{s}/{n}"
            for s in ("train", "val")
            for n in ("loss", "loss_before", "inner_residual", "inner_stationarity")
        ),
        *(f"train/{n}" for n in ("linear_residual", "linear_steps", "linear_converged", "linear_indefinite")),
        *(
            "train/gradient_norm",
            "train/strength",
            "train/seconds",
            "train/waiting",
            "train/peak_memory_mb",
            "test/loss",
            "test/loss_ci95",
        ),
    }
    filled = {name for row in rows for name, value in row.items() if value}
    assert expected <= filled
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [1, 3, 5, 7, 9, 11]
    logged, configured = wandb_names(next(run_folder.glob("wandb/offline-run-*/*.wandb")))
    assert expected | {"pictures/learning/_type", "pictures/episode/_type"} <= logged
    assert {"model", "data", "trainer"} <= configured


def wandb_names(file: Path) -> tuple[set[str], set[str]]:
    """Names of everything in the history, and in the configuration, of an offline W&B file."""
    from wandb.proto import wandb_internal_pb2

    logged, configured = set(), set()
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        logged |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        configured |= {item.key for item in record.run.config.update}
    return logged, configured


def leveldb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of LevelDB's log format, in which W&B writes: blocks of chunks (checksum, length, type, payload)."""
    at, parts = 7, b""  # W&B's own header comes first, inside the first block
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for a chunk's header: padding
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def test_run_without_validation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", *SMALL, "--trainer.max_steps", "2", "--trainer.logger", "false"])
    assert "/last.ckpt (there was no val/loss to choose a best by)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "taught"),
    [
        (["--help"], ["fit", "data check", "--support"]),
        (["predict", "--help"], ["--support", "--query", "test episodes"]),
        (["fit", "--help"], ["imaml-lightning fit", "--model.network", "--data.shot"]),
    ],
)
def test_help_teaches(args: list[str], taught: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(args)
    said = capsys.readouterr().out
    assert all(words in said for words in taught)


def test_predict_writes_outputs(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    done = run("predict", "--ckpt_path", "runs/sinusoid_5shot/000/best.ckpt", folder=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 5
    assert {row["episode"] for row in rows} == {str(i) for i in range(8)}


# Not of a sweep, which is no configuration of `fit`, nor of pictures and weights of one's own (test_backbone_cli.py).
@pytest.mark.parametrize(
    "config",
    sorted(path for path in CONFIGS.glob("*.yaml") if path.stem not in ("sweep", "backbone")),
    ids=lambda path: path.stem,
)
def test_every_config_runs(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data.tasks", "2", "--trainer.accelerator", "cpu"]
    if config.stem.startswith("omniglot"):
        # A small folder of torchmeta's kind, too small for the paper's split of 1200 characters.
        write_omniglot_root(tmp_path, count=100, drawings=20)
        options += ["--data.source.init_args.root", str(tmp_path), "--data.source.init_args.splits", "vinyals"]
    main(["fit", "--config", str(config), "--trainer.fast_dev_run", "true", *options])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_random_weights_are_refused(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--untrained true" in refused(subcommand, *SMALL, capsys=capsys)


def test_random_weights_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", *SMALL, "--untrained", "true"])
    assert "random, as asked" in capsys.readouterr().out


def test_bad_yaml_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("data: {way: [")
    assert "bad.yaml" in refused("fit", "--config", str(bad), capsys=capsys)


def test_missing_omniglot_says_what_to_put_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "omniglot_5w1s.yaml")
    where = ["--data.source.init_args.root", str(tmp_path), "--data.source.init_args.download", "false"]
    message = refused(
        "fit",
        "--config",
        config,
        *where,
        "--trainer.logger",
        "false",
        "--output",
        str(tmp_path),
        capsys=capsys,
        status=3,
    )
    assert "data.hdf5" in message
    assert not list(tmp_path.iterdir())  # no run's folder
    assert str(tmp_path) in message


def test_damaged_and_foreign_checkpoints(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = trained[0] / "runs/sinusoid_5shot/000/best.ckpt"
    for name, content in {"cut": best.read_bytes()[:-500], "text": b"not a checkpoint", "empty": b""}.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        assert str(path) in refused("test", "--ckpt_path", str(path), capsys=capsys)
        assert path.read_bytes() == content
    wider = ["--model.network.init_args.hidden", "[9]"]
    assert "--model.network" in refused("test", "--ckpt_path", str(best), *wider, capsys=capsys)


def test_help_and_print_config_teach(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--print_config=comments"])
    out = capsys.readouterr().out
    assert "# classes of a task" in out.lower()
    assert yaml.safe_load(out)["model"]["adaptation"]["class_path"].endswith("Implicit")


@pytest.mark.parametrize(("norm", "differ"), [("batch", True), ("group", False)])
def test_both_protocols_are_told_where_they_differ(
    norm: str, differ: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = ["--model.network.filters=4", f"--model.network.norm={norm}", "--model.network.zero_head=false"]
    main(
        ["test", "--untrained=true", "--data.test_episodes=6", "--data.tasks=2", "--trainer.accelerator=cpu", *network]
    )
    lines = {line.partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines[next(name for name in lines if name.startswith("test: "))] == (
        f"test: Implicit of Conv4 ({sum(p.numel() for p in Conv4(filters=4, norm=norm).parameters()):,} parameters) "
        "on Glyphs, 5-way 1-shot, on cpu"
    )
    assert ("transductive" if differ else "inductive") in lines["test"]
    assert ("one at a time" in lines) == differ
    if differ:
        learner, data = protocols_of(network)
        mean, _ = evaluate(learner, data, "test", 6, one_at_a_time).mean()
        assert f"accuracy {100 * mean:.2f} ±" in lines["one at a time"]
        assert lines["one at a time"].endswith("inductive), the first 6 episodes")


def protocols_of(network: list[str]) -> tuple[MetaLearner, EpisodeDataModule]:
    """The learner and the data of the same command."""
    with Signals() as signals:
        options = [
            "--data.test_episodes=6",
            "--data.tasks=2",
            "--trainer.fast_dev_run=true",
            "--trainer.accelerator=cpu",
        ]
        cli = CommandLine(signals, ["test", "--untrained=true", *options, *network])
    return cli.model.eval(), cli.datamodule
