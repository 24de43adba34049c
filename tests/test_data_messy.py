"""Folders as people have them: whatever is not used is left out aloud."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_files import folder, paint, saved, write_classes

from imaml_lightning.cli.predict_files import _read_folders
from imaml_lightning.data import SPLITS
from imaml_lightning.errors import DataWarning, UsageError


def test_groups_that_are_taken_for_classes_are_warned_of(tmp_path: Path) -> None:
    for site in range(5):
        write_classes(tmp_path / "root" / f"site{site}", count=2, first=10 * site)
    with pytest.warns(DataWarning, match=r"site0, site1, .* one folder deeper.*grouped true"):
        folder(tmp_path / "root").prepare()
    folder(tmp_path / "root", grouped=True).prepare()
    (tmp_path / "other").mkdir()
    for name in ("training", "validation", "testing"):
        write_classes(tmp_path / "other" / name, count=2)
    with pytest.warns(DataWarning, match="name them train, val and test"):
        folder(tmp_path / "other").prepare()
    for site in range(5):
        write_classes(tmp_path / "deeper" / f"site{site}" / "class" / "day", count=2)
    with pytest.warns(DataWarning, match="move the pictures up"):
        folder(tmp_path / "deeper", grouped=True).prepare()


def test_small_classes_are_left_out_with_a_count(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=12)
    write_classes(tmp_path / "root", count=2, pictures=1, first=12)
    source = folder(tmp_path / "root", min_examples=4)
    with pytest.warns(DataWarning, match=r"2 classes of .* fewer than 4 pictures are left out: class12 and class13"):
        bank = source.bank
    assert len(bank.names) == 12
    assert min(bank.counts) == 4
    with pytest.raises(UsageError, match=r"or leave such classes out by --data\.source\.min_examples 4"):
        folder(tmp_path / "root", min_examples=1, fractions=(0.98, 0.01, 0.01)).check("train", 2, 1, 3)


def messy(root: Path) -> None:
    """A folder as people have them: names of all scripts, hidden and foreign files, damaged and animated pictures."""
    write_classes(root, count=5)
    for name in ("Ärger und Weiß", "森林", "naïve 🌲"):
        for i in range(4):
            paint(root / name / f"ö {i} 木.png", (i, i, 200))
    (root / "class00" / ".hidden.png").write_bytes(b"x")
    (root / "class00" / ".thumbnails").mkdir()
    (root / "class00" / ".thumbnails" / "0.png").write_bytes(b"x")
    (root / ".cache").mkdir()
    paint(root / ".cache" / "0.png", (0, 0, 0))
    (root / "class00" / "Thumbs.db").write_bytes(b"x")
    (root / "class01" / "empty.png").touch()
    (root / "class01" / "cut.jpg").write_bytes(saved(np.zeros((64, 64, 3), np.uint8), "JPEG")[:300])
    (root / "class01" / "words.png").write_text("no picture")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(root / "class02" / "film.gif", save_all=True, append_images=frames[1:])


def test_a_messy_folder_is_refused_or_read_and_nothing_is_silent(tmp_path: Path) -> None:
    messy(tmp_path / "root")
    with pytest.raises(UsageError, match=r"class01/cut\.jpg cannot be read"):
        folder(tmp_path / "root").prepare()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bank = folder(tmp_path / "root", leave_out=True).bank
    said = "\n".join(str(one.message) for one in caught)
    assert "3 files are left out" in said
    for name in ("empty.png", "cut.jpg", "words.png"):
        assert name in said
    assert "1 pictures have several frames, of which the first is read" in said
    assert "film.gif" in said
    counts = dict(zip(bank.names, bank.counts.tolist(), strict=True))
    unicode = {"Ärger und Weiß": 4, "森林": 4, "naïve 🌲": 4}
    assert counts == {f"class{n:02d}": 4 + (n == 2) for n in range(5)} | unicode


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=5)
    (tmp_path / "root" / "empty").mkdir()
    with pytest.warns(DataWarning, match="1 folders in .* hold no picture and are no class: empty"):
        folder(tmp_path / "root").prepare()
    (tmp_path / "root" / "empty").rmdir()
    (tmp_path / "root" / "class01" / "IMG.HEIC").write_bytes(b"x")
    with pytest.warns(DataWarning, match=r"1 files in .* other kinds than pictures, and are not used: \.heic"):
        folder(tmp_path / "root").prepare()
    (tmp_path / "root" / "class01" / "IMG.HEIC").unlink()
    paint(tmp_path / "root" / "loose.png", (0, 0, 0))
    with pytest.warns(DataWarning, match="1 pictures lie in .* in no class, and are not used: loose"):
        folder(tmp_path / "root").prepare()
    for split in SPLITS:
        write_classes(tmp_path / "given" / split, count=1)
    write_classes(tmp_path / "given", count=1, first=7)
    with pytest.warns(DataWarning, match="its other folders are not used: class07"):
        folder(tmp_path / "given").prepare()


def test_no_class_left_is_said(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "0.png").touch()
    with pytest.warns(DataWarning), pytest.raises(UsageError, match=r"No class of .* is left"):
        folder(tmp_path / "root", leave_out=True).prepare()


def test_predict_reads_folders_by_the_same_rules(tmp_path: Path) -> None:
    write_classes(tmp_path / "support" / "site", count=2)
    paint(tmp_path / "query" / "0.png", (0, 0, 0))
    (tmp_path / "query" / "1.heic").write_bytes(b"x")
    (tmp_path / "query" / "deep.tif").write_bytes(saved(np.full((8, 8), 4095, np.uint16), "TIFF"))
    where = str(tmp_path / "support"), str(tmp_path / "query"), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = _read_folders({"shape": (1, 4, 4), "ink": False, "white": 4095}, *where)
    said = "\n".join(str(one.message) for one in caught)
    assert "the pictures of site in" in said
    assert "1 files in" in said
    assert ".heic" in said
    assert set(read.y) == {"site"}
    assert read.known_by == {"file": ["0.png", "deep.tif"]}
    assert (read.x.shape, read.query[0].max(), read.query[1].min()) == ((8, 1, 4, 4), 0, 255)
