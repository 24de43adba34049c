"""A pretrained body on the command line: from a folder of pictures and a file of weights to predictions."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused
from PIL import Image

from imaml_lightning import load
from imaml_lightning.cli import main

timm = pytest.importorskip("timm")

SMALL = ["--data.way=3", "--data.query=3", "--data.tasks=2", "--data.train_batches=4", "--data.val_episodes=6"]
QUICK = [
    *SMALL,
    "--data.test_episodes=20",
    "--trainer.max_steps=8",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
]


def photos(root: Path, classes: int = 12, each: int = 5, seed: int = 0) -> None:
    """Classes of a colour each, of several sizes, under noise."""
    rng = np.random.default_rng(seed)
    for number, colour in enumerate(rng.integers(60, 196, (classes, 3))):
        folder = root / f"class {number}"
        folder.mkdir(parents=True)
        for i in range(each):
            noise = rng.normal(0, 25, (20 + 7 * i, 40, 3))
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit; the file of its weights is gone."""
    folder = tmp_path_factory.mktemp("backbone")
    photos(folder / "photos")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "body.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["imaml_lightning"])
        main(["fit", "--config", "backbone", "--data.source.root", "photos", "--model.network.name", "test_resnet",
              "--model.network.weights", "body.pt", *QUICK])  # fmt: skip
    (folder / "body.pt").unlink()
    return folder


def test_a_checkpoint_holds_the_body_and_how_it_sees_pictures(trained: Path) -> None:
    learner = load(trained / "runs/backbone/000/best.ckpt")
    torch.manual_seed(0)
    for key, value in timm.create_model("test_resnet").state_dict().items():
        if not key.startswith("fc."):
            torch.testing.assert_close(learner.network.body.network.state_dict()[key], value)
    assert learner.network.frozen
    assert learner.network.body.pixels == 160
    assert learner.network.body.mean.flatten().tolist() == pytest.approx(
        list(timm.get_pretrained_cfg("test_resnet").mean)
    )
    checkpoint = torch.load(trained / "runs/backbone/000/best.ckpt", weights_only=True)
    assert checkpoint["EpisodeDataModule"]["reading"]["shape"] == [3, 160, 160]  # the body's size, which nobody named
    assert {p.name for p in (trained / "runs/backbone/000").iterdir()} >= {
        "episode.png",
        "adaptation.png",
        "solves.png",
    }


def test_test_and_predict_need_the_checkpoint_alone(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    main(["test", "--ckpt_path", "best", "--name", "backbone"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
    assert "inductive" in line
    assert float(line.split("accuracy ")[1].split()[0]) > 60
    photos(trained / "new" / "support", classes=7, each=3, seed=1)
    main(["predict", "--ckpt_path", "best", "--name", "backbone", "--support", "new/support", "--query", "new/support"])
    with (trained / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    assert len([name for name in rows[0] if name.startswith("p(")]) == 7  # trained with 3
    right = [row["prediction"] == Path(row["file"]).parent.name for row in rows]
    assert np.mean(right) > 0.9


def test_what_is_wrong_is_said_before_data_are_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", "backbone", "--data.source.root", "nowhere", "--model.network.name"]
    assert "timm has no resnt18" in refused(*fit, "resnt18", capsys=capsys)
    said = refused(*fit, "resnet18", "--model.network.weights", "gone.safetensors", capsys=capsys)
    assert "weights gone.safetensors do not exist" in said
