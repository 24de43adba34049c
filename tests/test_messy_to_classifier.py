"""A folder as people have them, to an exported classifier: one command each, and nothing silent."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused
from PIL import Image

from imaml_lightning.cli import main
from imaml_lightning.data.images import read_image

timm = pytest.importorskip("timm")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CLASSES = ["Ärger und Weiß", "森林", "naïve 🌲", "moss & fern", "a", "b", "c", "d", "e", "f"]
COLOURS = np.random.default_rng(3).integers(40, 216, (len(CLASSES) + 1, 3))


def picture(number: int, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Of a class: its colour under noise."""
    noise = rng.normal(0, 20, (size[1], size[0], 3))
    return Image.fromarray((COLOURS[number] + noise).clip(0, 255).astype(np.uint8))


def turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(path.with_suffix(".jpg"), exif=exif)


def animated(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".gif"), save_all=True, append_images=[image.rotate(90)])


#: Ways to save a picture of a class.
KINDS: list[Callable[[Image.Image, Path], None]] = [
    lambda image, path: image.save(path.with_suffix(".png")),
    turned,
    lambda image, path: image.convert("CMYK").save(path.with_suffix(".jpg")),
    lambda image, path: image.quantize(32).save(path.with_suffix(".png"), transparency=0),
    lambda image, path: image.convert("RGBA").save(path.with_suffix(".webp"), lossless=True),
    animated,
]


def messy(root: Path, seed: int, classes: int = len(CLASSES)) -> None:
    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES[:classes]):
        (root / name).mkdir(parents=True)
        for i, save in enumerate(KINDS):
            save(picture(number, rng, (20 + 9 * i, 50 - 3 * i)), root / name / f"ö {i}")
    (root / CLASSES[0] / "empty.png").touch()
    (root / CLASSES[0] / "cut.jpg").write_bytes((root / CLASSES[0] / "ö 1.jpg").read_bytes()[:200])
    (root / CLASSES[1] / ".hidden.png").write_bytes(b"x")
    (root / CLASSES[1] / "notes.txt").write_text("no picture")


def said_by(*args: str) -> str:
    """All warnings of a command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main([*args])
    return "\n".join(str(one.message) for one in caught)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a fit on messy pictures, and its warnings."""
    folder = tmp_path_factory.mktemp("messy")
    messy(folder / "photos", seed=0)
    picture(10, np.random.default_rng(1), (30, 30)).save(
        (folder / "photos" / "lonely").mkdir() or folder / "photos/lonely/0.png"
    )
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "body.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["imaml_lightning"])
        said = said_by("fit", "--config", "backbone", "--data.source.root", "photos", "--data.source.min_examples", "5",
              "--data.source.leave_out", "true", "--model.network.name", "test_resnet", "--model.network.weights", "body.pt",
              "--data.way=2", "--data.query=3", "--data.tasks=2", "--data.train_batches=4", "--data.val_episodes=4",
              "--data.test_episodes=4", "--trainer.max_steps=4", "--trainer.accelerator=cpu", "--trainer.logger=false")  # fmt: skip
    return folder, said


def test_whatever_is_left_out_of_training_is_named(trained: tuple[Path, str]) -> None:
    _, said = trained
    for words in ("1 classes of photos with fewer than 5 pictures are left out: lonely", "2 files are left out", "empty.png",
                  "cut.jpg", "1 files in photos are of other kinds than pictures", ".txt", "pictures have several frames"):  # fmt: skip
        assert words in said
    assert "hidden" not in said


def test_predict_and_export_agree_on_pictures_of_all_kinds(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])
    messy(folder / "support", seed=1, classes=4)
    messy(folder / "query", seed=2, classes=4)
    best = ["--ckpt_path", "best", "--name", "backbone", "--support", "support"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other things that are wrong
        for command in (["predict", *best, "--query", "query"], ["export", *best]):
            assert "cut.jpg cannot be read as a picture" in refused(*command, capsys=capsys, status=3)
    assert not Path("predictions.csv").exists()
    loud = said_by("predict", *best, "--query", "query", "--leave_out", "true")
    assert "4 files are left out" in loud
    assert "cut.jpg" in loud
    out = capsys.readouterr().out
    assert "none of these" in out
    assert "expected calibration error" in out
    page = Path("predictions.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("森林", "naïve 🌲", "moss &amp; fern"))
    with open("predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(KINDS)
    right = [row["prediction"] == Path(row["file"]).parent.name for row in rows]
    assert np.mean(right) > 0.7  # a quarter is guessing
    assert "2 files are left out" in said_by("export", *best, "--to", "out/classifier.onnx", "--leave_out", "true")
    session = onnxruntime.InferenceSession("out/classifier.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    classes, how = json.loads(about["classes"]), json.loads(about["pictures"])
    assert classes == sorted(CLASSES[:4])
    for row in rows:
        x = read_image(Path("query") / row["file"], (3, how["height"], how["width"]))
        probabilities = session.run(None, {"pictures": x[None]})[0][0]
        expected = [float(row[f"p({name})"]) for name in classes]
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_a_class_without_a_readable_picture_is_refused(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])
    for name in ("a", "b"):
        (tmp_path / "support" / name).mkdir(parents=True)
        (tmp_path / "support" / name / "0.png").touch()
    picture(0, np.random.default_rng(0), (9, 9)).save(tmp_path / "support/a/1.png")
    checkpoint = str(trained[0] / "runs/backbone/000/best.ckpt")
    export = ["export", "--ckpt_path", checkpoint, "--support", str(tmp_path / "support"), "--leave_out", "true"]
    assert "no picture of b in" in refused(*export, capsys=capsys)
