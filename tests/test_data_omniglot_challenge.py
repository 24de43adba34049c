"""The Omniglot challenge: fixed runs, tasks within an alphabet, and the whole data set where there is one."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from imaml_lightning.data import EpisodeDataModule, OmniglotChallenge
from imaml_lightning.data.archives import md5_of
from imaml_lightning.data.sources import omniglot_challenge as module
from imaml_lightning.data.sources.omniglot_challenge import MINIMAL
from imaml_lightning.errors import UsageError

SMALL_ALPHABET = "Early_Aramaic"  # has 22 characters; here 19, fewer than a task needs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sets' alphabets with 20 characters of 20 drawings, and runs whose pixels say what they are."""
    root, rng = tmp_path_factory.mktemp("challenge"), np.random.default_rng(0)
    folder = root / "omniglot"
    folder.mkdir()
    alphabets = sorted({name for names in MINIMAL.values() for name in names})
    labels = [
        ["images_background", name, f"character{i:02d}"]
        for name in alphabets
        for i in range(19 if name == SMALL_ALPHABET else 20)
    ]
    with h5py.File(folder / "data.hdf5", "w") as store:
        for label in labels:
            drawings = rng.integers(0, 256, (20, 1, 1), dtype=np.uint8).repeat(105, 1).repeat(105, 2)
            drawings[:] = np.uint8(5 * alphabets.index(label[1]) + 1)
            drawings[:, :52] = np.arange(20, dtype=np.uint8)[:, None, None]
            store["/".join(label)] = drawings
    for name in ("train", "test", "vinyals_train", "vinyals_val", "vinyals_test"):
        (folder / f"{name}_labels.json").write_text(json.dumps(labels))
    with zipfile.ZipFile(folder / "all_runs.zip", "w") as archive:
        for run in range(1, 21):
            order = np.random.default_rng(run).permutation(20) + 1
            lines = [
                f"run{run:02d}/test/item{i:02d}.png run{run:02d}/training/class{c:02d}.png"
                for i, c in enumerate(order, 1)
            ]
            archive.writestr(f"run{run:02d}/class_labels.txt", "\n".join(lines) + "\n")
            for i, c in enumerate(order, 1):
                for kind, number, shade in (("test", i, 100 + c), ("training", c, c)):
                    picture = io.BytesIO()
                    Image.fromarray(np.full((105, 105), 255 - shade, np.uint8)).save(picture, "PNG")
                    archive.writestr(
                        f"run{run:02d}/{kind}/{'item' if kind == 'test' else 'class'}{number:02d}.png",
                        picture.getvalue(),
                    )
    return root


@pytest.fixture(autouse=True)
def _small_file_is_the_published_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUNS_MD5", md5_of(root / "omniglot" / "all_runs.zip"))


def challenge(root: Path, **options) -> OmniglotChallenge:
    return OmniglotChallenge(str(root), cache=str(root / "cache"), **options)


def data(root: Path, **options) -> EpisodeDataModule:
    source = challenge(root, **options.pop("source", {}))
    return EpisodeDataModule(source, way=20, shot=1, query=3, eval_query=1, test_episodes=20, **options)


@pytest.mark.parametrize("on_device", [False, True])
def test_the_runs_are_the_published_pairs(root: Path, on_device: bool) -> None:
    whole = data(root, on_device=on_device).episode("test", 0, tasks=20)
    support, query = ((255 * part.x[:, :, 0, 0, 0]).round().int() for part in whole)
    assert torch.equal(support, torch.arange(1, 21).int().expand(20, -1))
    assert torch.equal(query, support + 100)
    assert torch.equal(whole.query.y, torch.arange(20).expand(20, -1))


def test_training_is_within_an_alphabet_and_validation_on_other_drawings(root: Path) -> None:
    module_ = data(root, source={"background": "small1", "rotations": False})
    seen = set()
    for split, drawings in (("train", range(18)), ("val", range(18, 20))):
        x = (255 * module_.episode(split, 0, tasks=60).query.x[:, :, 0]).round().int()
        # The row in the middle of the lower half tells the alphabet, the upper one the drawing.
        alphabets, numbers = x[:, :, 24, 5], x[:, :, 4, 5]
        assert (alphabets == alphabets[:, :1]).all()
        assert set(numbers.flatten().tolist()) == set(drawings)
        seen |= set(alphabets.flatten().tolist())
    names = sorted({name for names in MINIMAL.values() for name in names})
    assert seen == {5 * names.index(name) + 1 for name in MINIMAL["small1"] if name != SMALL_ALPHABET}


def test_a_turned_alphabet_is_another_one(root: Path) -> None:
    bank = challenge(root, background="small2").bank
    groups = [bank.groups[i] for i in bank.splits["train"]]
    assert len(set(groups)) == 4 * 5
    assert {groups.count(group) for group in groups} == {20}


@pytest.mark.parametrize(
    "options", [{"way": 5, "eval_query": 1}, {"way": 20, "eval_query": 2}, {"way": 20, "shot": 2, "eval_query": 1}]
)
def test_another_test_than_the_official_one_is_refused(root: Path, options) -> None:
    with pytest.raises(UsageError, match="The Omniglot challenge tests 20-way 1-shot with one query each"):
        EpisodeDataModule(challenge(root), **{"query": 3, **options}).episode("test", 0)


def test_missing_or_other_runs_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"all_runs.zip there, or name it by --data.source.runs"):
        challenge(root, runs=str(tmp_path / "nowhere.zip")).prepare()
    (tmp_path / "other.zip").write_bytes(b"x")
    with pytest.raises(UsageError, match="is not the official file"):
        challenge(root, runs=str(tmp_path / "other.zip")).prepare()
    with pytest.raises(UsageError, match="background is all, small1 or small2"):
        challenge(root, background="small3")


@pytest.mark.parametrize(
    ("background", "alphabets", "characters"), [("all", 30, 964), ("small1", 5, 136), ("small2", 5, 156)]
)
def test_whole_omniglot(background: str, alphabets: int, characters: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    real, runs = os.environ.get("IMAML_OMNIGLOT_ROOT"), os.environ.get("IMAML_OMNIGLOT_RUNS")
    if not real or not runs:
        pytest.skip("IMAML_OMNIGLOT_ROOT and IMAML_OMNIGLOT_RUNS name no whole Omniglot and its all_runs.zip")
    bank = OmniglotChallenge(real, runs=runs, background=background, rotations=False, cache=str(tmp_path)).bank
    assert len(bank.splits["train"]) == len(bank.splits["val"]) == characters
    assert len({bank.groups[i] for i in bank.splits["train"]}) == alphabets
    assert len(bank.splits["test"]) == 400
    assert [int(n) for n in np.unique(np.diff(bank.starts))] == [2, 18]
    # Of the test drawings none is among the background's.
    known = {image.tobytes() for image in bank.examples[: bank.starts[bank.splits["test"].start]]}
    assert not any(image.tobytes() in known for image in bank.examples[bank.starts[bank.splits["test"].start] :])
