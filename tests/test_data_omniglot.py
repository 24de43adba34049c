"""Omniglot through the real torchmeta: a small folder in its format, and the whole one where there is one."""

from __future__ import annotations

import io
import json
import os
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import write_omniglot_root

from imaml_lightning.data import SPLITS, Omniglot
from imaml_lightning.data.bank import ClassBank
from imaml_lightning.errors import UsageError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_omniglot_root(folder)
    return folder


def omniglot(root: Path, **options) -> Omniglot:
    return Omniglot(str(root), cache=str(root / "cache"), **options)


def test_vinyals_split_with_rotations(root: Path) -> None:
    bank = omniglot(root).bank
    images = bank.examples.reshape(-1, 3, 1, 28, 28)
    assert len(images) == len(bank.names) == 4 * 15 + 7 + 8
    assert [len(bank.splits[split]) for split in SPLITS] == [60, 7, 8]
    upright = [name.removesuffix(" 0°") for name in bank.names[:15]]
    lists = json.loads((root / "omniglot" / "vinyals_train_labels.json").read_text())
    assert upright == ["/".join(label) for label in lists]
    for quarter in range(1, 4):
        assert bank.names[15 * quarter] == f"{upright[0]} {90 * quarter}°"
        turned = np.rot90(images[:15], quarter, (-2, -1))
        np.testing.assert_array_equal(images[15 * quarter : 15 * (quarter + 1)], turned)
    assert not any("°" in name for split in ("val", "test") for name in map(bank.names.__getitem__, bank.splits[split]))


def test_images_are_those_of_torchmeta_resized(root: Path) -> None:
    from torchmeta.datasets import Omniglot as Reference
    from torchvision.transforms import Resize

    bank = omniglot(root, rotations=False).bank
    reference = Reference(str(root), 3, meta_split="val", transform=Resize(28))
    for number, row in enumerate(bank.splits["val"]):
        images = [np.asarray(image) for image, _ in reference.dataset[number]]
        np.testing.assert_array_equal(bank.of_class(row)[:, 0], images)


def test_random_split_is_the_papers(tmp_path: Path) -> None:
    write_omniglot_root(tmp_path, count=1230, drawings=1)
    banks = [omniglot(tmp_path, splits="random", split_seed=seed, rotations=False).bank for seed in (0, 0, 1)]
    assert [len(banks[0].splits[split]) for split in SPLITS] == [1100, 100, 30]
    assert len(set(banks[0].names)) == 1230
    assert banks[0].names == banks[1].names != banks[2].names


def test_replaced_data_is_read_anew(tmp_path: Path) -> None:
    write_omniglot_root(tmp_path / "a", seed=0)
    before = omniglot(tmp_path / "a").bank.examples.copy()
    os.rename(tmp_path / "a" / "omniglot", tmp_path / "old")
    write_omniglot_root(tmp_path / "a", seed=1)
    assert (omniglot(tmp_path / "a").bank.examples != before).any()


@pytest.mark.parametrize("missing", ["data.hdf5", "vinyals_val_labels.json", None])
def test_missing_file_is_named(tmp_path: Path, missing: str | None) -> None:
    if missing:
        write_omniglot_root(tmp_path)
        (tmp_path / "omniglot" / missing).unlink()
    with pytest.raises(
        UsageError, match=f"not complete in .*omniglot: put .*{missing or 'data.hdf5'}.* --data.source.download true"
    ):
        omniglot(tmp_path).prepare()


@pytest.mark.parametrize("damage", ["cut", "character", "list"])
def test_damaged_folder_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    write_omniglot_root(tmp_path)
    images, labels = (tmp_path / "omniglot" / n for n in ("data.hdf5", "vinyals_test_labels.json"))
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:1000])
    elif damage == "character":
        labels.write_text(json.dumps([["images_background", "Alphabet", "character9999"]]))
    else:
        labels.write_text("[[")
    before = {path: path.read_bytes() for path in (images, labels)}
    with pytest.raises(UsageError, match=r"Omniglot in .* is damaged"):
        omniglot(tmp_path).prepare()
    assert before == {path: path.read_bytes() for path in (images, labels)}
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(("option", "value"), [("splits", "lake"), ("split_seed", -1)])
def test_bad_options(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=option):
        Omniglot(**{option: value})


def test_no_network_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmeta.datasets.omniglot as module

    def offline(*_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(module, "download_url", offline)
    write_omniglot_root(tmp_path)
    (tmp_path / "omniglot" / "data.hdf5").unlink()
    before = sorted(os.listdir(tmp_path / "omniglot"))
    with pytest.raises(UsageError, match=r"put images_background.zip and images_evaluation.zip .* into .*omniglot"):
        omniglot(tmp_path, download=True).prepare()
    assert os.listdir(tmp_path) == ["omniglot"]
    assert sorted(os.listdir(tmp_path / "omniglot")) == before


def test_zip_files_put_there_are_processed_without_a_network(tmp_path: Path) -> None:
    folder = tmp_path / "omniglot"
    folder.mkdir()
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for number in range(2):
                for drawer in range(2):
                    picture = io.BytesIO()
                    Image.new("1", (105, 105), 1).save(picture, "PNG")
                    archive.writestr(f"{part}/Greek/character0{number}/{drawer}.png", picture.getvalue())
    source = omniglot(tmp_path, download=True)
    # These zips are not all of Omniglot, which torchmeta's Vinyals lists ask for.
    with pytest.raises(UsageError, match="damaged"):
        source.prepare()
    names = json.loads((folder / "test_labels.json").read_text())
    assert names == [["images_evaluation", "Greek", f"character0{n}"] for n in range(2)]
    assert sorted(os.listdir(tmp_path)) == ["cache", "omniglot"]


@pytest.fixture(scope="module", params=["vinyals", "random"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClassBank]:
    root = os.environ.get("IMAML_OMNIGLOT_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("IMAML_OMNIGLOT_ROOT names no folder with the whole of Omniglot")
    return Omniglot(root, splits=request.param, cache=str(tmp_path_factory.mktemp("bank"))).bank


def test_whole_omniglot(whole: ClassBank) -> None:
    counts = {split: len(whole.splits[split]) for split in SPLITS}
    vinyals = whole.header["recipe"]["split_seed"] is None
    assert counts == (
        {"train": 4 * 1028, "val": 172, "test": 423} if vinyals else {"train": 4 * 1100, "val": 100, "test": 423}
    )
    assert whole.examples.shape[1:] == (1, 28, 28)
    assert set(np.diff(whole.starts)) == {20}
    assert len(set(whole.names)) == len(whole.names)
    # No character in two splits, none lost: 1,623 in all.
    characters = [{whole.names[i].split(" ")[0] for i in whole.splits[split]} for split in SPLITS]
    assert sum(map(len, characters)) == len(set.union(*characters)) == 1623
    # Ink is 255 on paper 0, and little of it.
    assert 0.03 < whole.examples.mean() / 255 < 0.15
    assert whole.examples.max() > 200
