"""A practitioner's way through the real command line: meta-train on a folder or table, check it, predict a new task."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from command import refused, run
from PIL import Image, ImageDraw

from imaml_lightning import adapt, load
from imaml_lightning.cli import main

TINY = [
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.logger", "false"),
    *("--data.shot", "2", "--data.query", "2", "--data.tasks", "2", "--data.train_batches", "2"),
    *("--data.val_episodes", "2", "--data.test_episodes", "2"),
]


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["imaml_lightning"])


def draw(file: Path, sides: int, rng: np.random.Generator) -> None:
    """A polygon, dark on light paper."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (60, 40), "white")
    centre = (30 + rng.uniform(-4, 4), 20 + rng.uniform(-4, 4), rng.uniform(9, 14))
    ImageDraw.Draw(image).regular_polygon(centre, sides, rotation=rng.uniform(0, 90), fill="black")
    image.save(file)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained checkpoint, a folder of classes, and a new task of 12 + 8 drawings."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(10):
        for i in range(4):
            draw(root / "classes" / f"kind{number}" / f"{i}.png", 3 + number % 5, rng)
    for sides, name in ((3, "triangle"), (7, "round")):
        for i in range(6):
            draw(root / "support" / name / f"{i}.jpg", sides, rng)
        for i in range(4):
            draw(root / "query" / f"{name}{i}.jpg", sides, rng)
    source = ["--data.source", "ImageFolder", "--data.source.root", str(root / "classes"), "--data.source.size", "16"]
    source += ["--data.source.ink", "true", "--data.way", "2"]
    source += ["--data.augment.crop", "2", "--data.on_device", "true", "--data.workers", "1"]
    network = ["--model.network", "Conv4", "--model.network.size", "16", "--model.network.channels", "3"]
    network += ["--model.network.filters", "8"]
    done = run("fit", "--name", "kinds", *source, *network, *TINY, folder=root)
    assert done.returncode == 0, done.stderr
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_twenty_drawings_in_folders_one_command_a_csv(photographs: Path) -> None:
    checkpoint = "runs/kinds/000/best.ckpt"
    done = run("predict", "--ckpt_path", checkpoint, "--support", "support", "--query", "query", folder=photographs)
    assert done.returncode == 0, done.stderr
    found = rows(photographs / "predictions.csv")
    assert [row["file"] for row in found] == [f"{name}{i}.jpg" for name in ("round", "triangle") for i in range(4)]
    for row in found:
        chances = {name: float(row[f"p({name})"]) for name in ("round", "triangle")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(chances, key=chances.get)
    for part in (
        "support          12 examples of 2 classes",
        "support loss",
        "inner problem",
        "left out in turn",
        "8 in pred",
    ):
        assert part in done.stdout
    # The same from Python.
    learner = load(photographs / checkpoint)
    from imaml_lightning.data.images import read_image

    def pictures(pattern: str) -> np.ndarray:
        return np.stack([read_image(f, (3, 16, 16), ink=True) for f in sorted(photographs.glob(pattern))])

    x = np.concatenate([pictures("support/round/*"), pictures("support/triangle/*")])
    probabilities = adapt(learner, x, ["round"] * 6 + ["triangle"] * 6)(pictures("query/*"))
    written = [[float(row[f"p({name})"]) for name in ("round", "triangle")] for row in found]
    np.testing.assert_allclose(probabilities.numpy(), written, atol=1e-5)


def test_ensemble_and_named_run(photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(photographs)
    both = "[runs/kinds/000/best.ckpt, runs/kinds/000/last.ckpt]"
    where = ["--support", "support", "--query", "query", "--predictions", "out/p.csv"]
    main(["predict", "--ckpt_path", both, *where])
    assert "ensemble         2 checkpoints" in capsys.readouterr().out
    main(["predict", "--ckpt_path", "best", "--name", "kinds", *where])
    assert len(rows(photographs / "out" / "p.csv")) == 8


def test_what_predict_cannot_use_is_named(photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(photographs)
    (photographs / "empty").mkdir()
    checkpoint = ["predict", "--ckpt_path", "runs/kinds/000/best.ckpt"]
    for support, query, sentence in (
        ("nowhere", "query", "nowhere is not a folder"),
        ("empty", "query", "no pictures in empty: put them into a folder for each class"),
        ("support", "empty", "no pictures in empty: put there what is to be predicted"),
        ("support.csv", "query.csv", "not trained on a table"),
    ):
        assert sentence in refused(*checkpoint, "--support", support, "--query", query, capsys=capsys)
    for sides in range(3, 9):
        draw(photographs / "many" / str(sides) / "0.png", sides, np.random.default_rng(0))
    assert "6 classes, the network 2 outputs" in refused(
        *checkpoint, "--support", "many", "--query", "query", capsys=capsys
    )


def test_data_check(photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(photographs)
    source = ["--data.source", "ImageFolder", "--data.source.root", "classes", "--data.source.size", "16"]
    command = ["data", "check", *source, "--data.way", "2", "--data.shot", "1", "--data.query", "3"]
    main(command)
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines()[1:4]] == [
        ["train", "6", "-", "24"],
        ["val", "2", "-", "8"],
        ["test", "2", "-", "8"],
    ]
    assert "no example is in two splits; such episodes can be had" in out
    assert "--data.way 5 (or eval_way) asks for more" in refused(*command, "--data.way", "5", capsys=capsys)
    config = photographs / "config.yaml"
    config.write_text(
        "model: {anything: 1}\ndata: {source: {class_path: ImageFolder, init_args: {root: classes, size: 16}}, way: 2, query: 2}"
    )
    main(["data", "check", "--config", str(config), "--data.shot", "2"])
    assert "2 classes with 2 support and 2 query examples each, 8 in all" in capsys.readouterr().out


def test_what_is_warned_of_is_one_line_without_a_place_in_the_code(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        for i in range(3):
            draw(tmp_path / "root" / f"site{number % 2}" / f"kind{number}" / f"{i}.png", 3 + number, rng)
    source = ["--data.source", "ImageFolder", "--data.source.root", "root", "--data.source.size", "16"]
    done = run("data", "check", *source, "--data.way", "2", "--data.query", "2", folder=tmp_path)
    warned = [line for line in done.stderr.splitlines() if "one folder deeper" in line]
    assert [line.partition(" of ")[0] for line in warned] == ["warning: the pictures"]
    assert "set --data.source.grouped true" in warned[0]
    assert "notice.py" not in done.stderr


def test_data_check_finds_what_leaks(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(2):
            for i in range(4):
                draw(tmp_path / split / f"{split}{number}" / f"{i}.png", 3 + number, rng)
    picture = (tmp_path / "test" / "test0" / "0.png").read_bytes()
    (tmp_path / "train" / "train1" / "copy.png").write_bytes(picture)
    (tmp_path / "train" / "train1" / "3.png").write_bytes((tmp_path / "train" / "train1" / "2.png").read_bytes())
    source = ["--data.source", "ImageFolder", "--data.source.root", str(tmp_path), "--data.source.size", "16"]
    message = refused("data", "check", *source, "--data.way", "2", "--data.query", "2", capsys=capsys, status=3)
    assert "1 examples are in two splits, such as one of train's train1 and test's test0" in message


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_table_from_training_to_predictions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def write(name: str, tasks: range, columns: list[str]) -> None:
        with Path(name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for task in tasks:
                slope = rng.uniform(50, 150)
                for i in range(8):
                    a, b = rng.normal(size=2)
                    y = 1000 + slope * a if kind == "regression" else ("high" if a > 0 else "low")
                    row = {"task": f"t{task}", "a": a, "b": b, "y": y, "id": f"{task}-{i}"}
                    writer.writerow([row[column] for column in columns])

    write("train.csv", range(15), ["task", "a", "b", "y"])
    write("support.csv", range(1), ["b", "a", "y"])
    write("query.csv", range(1), ["id", "a", "b"])
    options = ["--data.source", "TaskTable", "--data.source.path", "train.csv", "--data.source.target", "y"]
    options += [
        "--data.source.kind",
        kind,
        "--data.way",
        "2",
        "--model.network",
        "imaml_lightning.models.MLP",
        "--model.network.features",
        "2",
    ]
    options += ["--model.network.outputs", "2" if kind == "classification" else "1"]
    if kind == "regression":
        options += ["--model.criterion", "torch.nn.MSELoss", "--best.monitor", "val/loss", "--best.mode", "min"]
    else:
        options += ["--best.monitor", "val/accuracy"]
    main(["fit", "--name", "table", *options, *TINY])
    main(["data", "check", *options[:8], "--data.way", "2"])
    main(["predict", "--ckpt_path", "best", "--name", "table", "--support", "support.csv", "--query", "query.csv"])
    found = rows(tmp_path / "predictions.csv")
    assert [row["id"] for row in found] == [f"0-{i}" for i in range(8)]
    if kind == "regression":
        assert all(500 < float(row["mean"]) < 1500 for row in found)
        assert all(float(row["spread"]) > 0 for row in found)
        assert "units of the training target's deviation" in capsys.readouterr().out
    else:
        assert {row["prediction"] for row in found} <= {"high", "low"}
        assert all(float(row["p(high)"]) + float(row["p(low)"]) == pytest.approx(1, abs=1e-5) for row in found)
    bad = ["predict", "--ckpt_path", "best", "--name", "table", "--query", "query.csv", "--support", "query.csv"]
    assert "query.csv has no column y" in refused(*bad, capsys=capsys, status=3)
