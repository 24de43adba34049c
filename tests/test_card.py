"""The card beside a checkpoint, and the artifact that W&B is given where the person wants it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from command import SMALL, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("card")
    done = run(
        "fit", *SMALL, "--trainer.max_steps", "6", "--licence", "CC BY 4.0", "--log_model", "true", folder=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs/sinusoid_5shot/000", done.stdout


def test_the_card_says_what_it_is_and_how_it_was_made(trained: tuple[Path, str]) -> None:
    folder, out = trained
    card = (folder / "card.md").read_text()
    figure = next(line for line in out.splitlines() if line.startswith("test "))
    assert f"- test: {figure.split(maxsplit=1)[1]}" in card  # the figure with its interval, as it was printed
    assert "±" in figure
    for line in ("- network: MLP, ", "- algorithm: Implicit", "- data: Sinusoid, inputs (1,)", "- licence: CC BY 4.0",
                 "- trained with: 5-shot episodes, ", "- protocol: inductive"):  # fmt: skip
        assert line in card
    command = next(line for line in card.splitlines() if line.startswith("    python -m imaml_lightning fit"))
    assert shlex.split(command)[3:5] == ["fit", "--config"]
    assert "--trainer.max_steps 6" in command
    assert yaml.safe_load("\n".join(card.split("named:\n\n    ")[1].splitlines()).replace("\n    ", "\n"))["class_path"]


def test_wandb_is_given_the_checkpoint_and_its_card(trained: tuple[Path, str]) -> None:
    from test_cli import leveldb_records
    from wandb.proto import wandb_internal_pb2

    folder, _ = trained
    found = []
    for data in leveldb_records(next(folder.glob("wandb/offline-run-*/*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("request") and record.request.HasField("log_artifact"):
            found.append(record.request.log_artifact.artifact)
        elif record.HasField("artifact"):
            found.append(record.artifact)
    models = [artifact for artifact in found if artifact.type == "model"]
    assert len(models) == 1
    assert {entry.path for entry in models[0].manifest.contents} == {"best.ckpt", "card.md"}
