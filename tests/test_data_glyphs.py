"""Glyphs: enough letters, legible, the same every time, and no test shape in training."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from imaml_lightning.data import SPLITS, Glyphs
from imaml_lightning.data.bank import ClassBank
from imaml_lightning.data.sources import glyphs as module
from imaml_lightning.data.sources.glyphs import DRAWINGS, INK, SCRIPTS, Faces, _draw, _render, _script


@pytest.fixture(scope="module")
def shapes() -> dict[str, Faces]:
    return _render()


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Glyphs:
    source = Glyphs(str(tmp_path_factory.mktemp("glyphs")))
    source.prepare()
    return source


@pytest.fixture(scope="module")
def bank(glyphs: Glyphs) -> ClassBank:
    return glyphs.bank


def letters(bank: ClassBank, split: str) -> list[str]:
    return [bank.names[i][-1] for i in bank.splits[split]]


def test_size(bank: ClassBank, glyphs: Glyphs) -> None:
    assert bank.examples.shape[1:] == glyphs.shape
    assert set(np.diff(bank.starts)) == {DRAWINGS}
    assert {s: len(bank.splits[s]) for s in SPLITS} == {
        "train": pytest.approx(1765, abs=100), "val": pytest.approx(200, abs=30),
        "test": pytest.approx(314, abs=14),
    }  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_whole_scripts(bank: ClassBank, split: str) -> None:
    counts = Counter(_script(letter) for letter in letters(bank, split))
    assert set(counts) == set(SCRIPTS[split])
    assert min(counts.values()) >= 30


def test_no_letter_twice(bank: ClassBank) -> None:
    assert len(set(bank.names)) == len(bank.names)


def test_one_of_a_shared_shape_is_kept(bank: ClassBank) -> None:
    everything = "".join(letter for split in SPLITS for letter in letters(bank, split))
    # Latin, Greek and Cyrillic capitals; Latin and Cyrillic small letters; size does not make a class.
    for shared in ("AΑА", "HΗН", "TΤТ", "oOοОօ", "cс", "xх"):
        assert sum(letter in everything for letter in shared) <= 1, shared
    # A shape that a test script has is kept there: Armenian OH, which looks like o.
    assert "օ" in letters(bank, "test")
    assert "o" not in everything
    # And letters that differ are not taken for one shape.
    assert set("ABDEFGHKMRW") <= set(everything)


def test_splits_are_disjoint_by_content(bank: ClassBank, shapes: dict[str, Faces]) -> None:
    """No training letter has the shape of a test or validation letter, in the first face of that letter."""
    for split in ("val", "test"):
        for letter in letters(bank, split)[::10]:
            own = min(shapes[letter])
            mine = shapes[letter][own].astype(float).ravel()
            others = [shapes[c][own].ravel() for c in letters(bank, "train") if own in shapes[c]]
            other = np.stack(others).astype(float)
            cosine = other @ mine / np.linalg.norm(other, axis=1) / np.linalg.norm(mine)
            assert cosine.max() < 0.97, letter


def test_drawings_are_legible_and_centred(bank: ClassBank) -> None:
    images = bank.examples.reshape(-1, DRAWINGS, *bank.examples.shape[2:]).astype(float)
    assert images.max((2, 3)).min() > 90  # ink everywhere, even in hairlines
    ink = images.sum((2, 3))
    places = np.arange(28) - 13.5
    for axis in (2, 3):
        centre = (images.sum(5 - axis) * places).sum(-1) / ink
        assert np.abs(centre).max() < 9
        assert np.abs(centre.mean()) < 0.5
    edge = images[:, :, [0, -1]].sum() + images[:, :, :, [0, -1]].sum()
    assert edge / images.sum() < 0.002  # hardly anything is cut off


def test_drawings_of_a_letter_differ(bank: ClassBank) -> None:
    for row in bank.examples.reshape(-1, DRAWINGS, 784)[::50]:
        assert len(np.unique(row, axis=0)) == DRAWINGS


def test_drawing_is_a_function_of_the_generator() -> None:
    faces = {3: np.tri(2 * INK, dtype=np.uint8) * 255, 1: np.eye(2 * INK, dtype=np.uint8) * 255}
    first, again, other = (_draw(faces, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_same_bytes_again(bank, shapes, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_render", lambda: shapes)
    again = Glyphs(str(tmp_path)).bank
    assert again.names == bank.names
    digests = [hashlib.sha256(b.examples.tobytes()).hexdigest() for b in (bank, again)]
    assert digests[0] == digests[1]
