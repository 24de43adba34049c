"""Export: a classifier in a file that says what predict says, run by onnxruntime and by torch alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused
from own_bodies import Convolutions, Rows, Transformer, head_only, pictures
from torch import nn

from imaml_lightning import MetaLearner, UsageError, adapt
from imaml_lightning.adaptation import Implicit
from imaml_lightning.evaluation import export, exporting
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import MLP, Backbone, Conv4

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ["Ärger", "森林", "moss"]


def own(body: nn.Module, **options) -> MetaLearner:
    torch.manual_seed(0)
    return head_only(
        Backbone(body=body, pixels=16, frozen=True, mean=[0.4, 0.5, 0.6], deviation=[0.2, 0.3, 0.4], **options)
    ).eval()


def conv4() -> MetaLearner:
    torch.manual_seed(0)
    network = Conv4(channels=3, size=16, filters=8, norm="group", way=4, pools=3)
    return MetaLearner(network, Implicit(GradientDescent(0.1, 5)))


LEARNERS = {
    "running statistics": lambda: [own(Convolutions(), without="fc")],
    "LSTM": lambda: [own(Rows(), part=1)],
    "transformer": lambda: [own(Transformer(), part="pooled", neck="linear")],
    "all of Conv4": lambda: [conv4()],
    "ensemble": lambda: [own(Convolutions(), without="fc"), conv4()],
}


def as_bytes(count: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    return (255 * pictures(count, size, seed)).to(torch.uint8)


@pytest.mark.parametrize("learners", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_file_says_what_the_predictor_says(learners, kind: str, tmp_path: Path) -> None:
    x, query, path = as_bytes(6), as_bytes(5, 1), tmp_path / f"classifier.{kind}"
    predictor = adapt(learners(), x, NAMES * 2)
    assert export(predictor, path, x, {"white": 4095}) < 1e-5
    expected = predictor(query)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = lambda x: torch.from_numpy(session.run(["probabilities"], {"pictures": x.numpy()})[0])  # noqa: E731
        said = session.get_modelmeta().custom_metadata_map
    else:
        files = {"classes.json": "", "pictures.json": ""}
        program = torch.export.load(path, extra_files=files).module()
        run, said = program, {name.removesuffix(".json"): text for name, text in files.items()}
    torch.testing.assert_close(run(query), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(run(query[:1]), expected[:1], atol=1e-4, rtol=0)  # of any number
    assert expected.amax(1).std() > 1e-3  # they are not all alike
    assert json.loads(said["classes"]) == predictor.labels == sorted(NAMES)
    assert json.loads(said["pictures"])["white"] == 4095
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_pictures_of_another_size_and_drawings_are_turned_into_the_body_s_own_inside(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = head_only(Backbone(body=Convolutions(), without="fc", pixels=16, frozen=True)).eval()
    dark, path = as_bytes(6, size=24)[:, :1] // 3, tmp_path / "c.onnx"  # grey, ink 255
    predictor = adapt(learner, dark, NAMES * 2)
    export(predictor, path, dark, {"ink": True})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for given in (dark, 255 - dark):  # light drawings, as they come from a scanner
        said = session.run(None, {"pictures": given.numpy()})[0]
        np.testing.assert_allclose(said, predictor(dark).numpy(), atol=1e-4)


def test_a_file_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = as_bytes(6), tmp_path / "c.pt2"
    predictor = adapt(own(Convolutions(), without="fc"), x, NAMES * 2)
    monkeypatch.setitem(exporting._WRITERS, ".pt2", lambda classifier, *_: (b"", lambda x: classifier(x).roll(1, 1)))
    with pytest.raises(UsageError, match=r"c\.pt2 is not written: its probabilities differ"):
        export(predictor, path, x)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    x = as_bytes(6)
    transductive = MetaLearner(Conv4(channels=3, size=16, filters=8, way=4, pools=3), Implicit(GradientDescent(0.1, 5)))
    rows = np.random.default_rng(0).normal(size=(6, 3))
    table = MetaLearner(MLP(3, 4), Implicit(GradientDescent(0.1, 5)))
    for predictor, to, sentence in (
        (adapt(transductive, x, NAMES * 2), "c.onnx", "Conv4 normalises each picture beside the support set"),
        (adapt(table, rows, NAMES * 2), "c.onnx", "classifies pictures"),
        (adapt(conv4(), x, NAMES * 2), "c.tflite", "no known kind: name a file that ends with .onnx or .pt2"),
        (adapt(conv4(), x, NAMES * 2), "c.onnx/c.pt2", "cannot write .*: choose another file by --to"),
    ):
        (tmp_path / "c.onnx").touch()
        with pytest.raises(UsageError, match=sentence):
            export(predictor, tmp_path / to, x)


def test_export_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])
    assert "gone.ckpt does not exist" in refused("export", "--ckpt_path", "gone.ckpt", "--support", "x", capsys=capsys)
    assert "did you mean export" in refused("exprt", capsys=capsys)
