"""The class bank: whole or not there, and rebuilt when it is not the one that was asked for."""

from __future__ import annotations

import errno
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_data import Tiny

from imaml_lightning.data.bank import ClassBank, bank_path
from imaml_lightning.errors import UsageError

RECIPE = {"source": "tiny", "version": 1, "size": (3, 4)}


@pytest.fixture
def bank(tmp_path: Path) -> ClassBank:
    return ClassBank.write(tmp_path / "a.bank", RECIPE, Tiny().build())


def test_gives_back_what_was_written(bank: ClassBank) -> None:
    classes = list(Tiny().build())
    again = ClassBank.open(bank.path, RECIPE)
    assert again is not None
    np.testing.assert_array_equal(again.examples, np.concatenate([c.examples for c in classes]))
    np.testing.assert_array_equal(again.of_class(13), classes[13].examples)
    assert again.names == [c.name for c in classes]
    assert again.groups == [c.group for c in classes]
    assert again.splits == {"train": range(0, 12), "val": range(12, 19), "test": range(19, 25)}
    assert not again.examples.flags.writeable


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:40],
        lambda data: b"",
        lambda data: b"\xff\xfe" * 100,
        lambda data: b"[1, 2]\n",
        lambda data: data.replace(b"class bank 2", b"class bank 0"),
        lambda data: data.replace(b'"version": 1', b'"version": 2'),
    ],
)
def test_damaged_or_other_file_is_not_a_bank(bank: ClassBank, damage) -> None:
    bank.path.write_bytes(damage(bank.path.read_bytes()))
    assert ClassBank.open(bank.path, RECIPE) is None


def test_missing_file_and_other_recipe_are_not_a_bank(bank: ClassBank) -> None:
    assert ClassBank.open(bank.path.with_name("b.bank"), RECIPE) is None
    assert ClassBank.open(bank.path, {**RECIPE, "size": (3, 5)}) is None


def test_source_builds_once_and_rebuilds_a_damaged_bank(tmp_path: Path) -> None:
    first, second, third = (Tiny(str(tmp_path)) for _ in range(3))
    first.prepare()
    second.prepare()
    assert (first.built, second.built) == (1, 0)
    path = first.bank.path
    path.write_bytes(path.read_bytes()[:-7])
    third.prepare()
    assert third.built == 1
    np.testing.assert_array_equal(third.bank.of_class(24), list(Tiny().build())[24].examples)


def test_recipes_do_not_share_a_file(tmp_path: Path) -> None:
    banks = [Tiny(str(tmp_path), version).bank for version in (1, 2)]
    assert banks[0].path != banks[1].path
    assert Tiny(str(tmp_path), 1).bank.path == banks[0].path


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_bank_and_no_rubbish(bank, monkeypatch, step) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = bank.path.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UsageError, match=r"Cannot write the class bank.*No space left.*IMAML_CACHE"):
        ClassBank.write(bank.path, {**RECIPE, "version": 2}, Tiny().build())
    assert bank.path.read_bytes() == before
    assert os.listdir(bank.path.parent) == [bank.path.name]


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot write the class bank"):
        Tiny(str(tmp_path / "file" / "folder")).prepare()


def test_only_abandoned_temporaries_are_swept(bank: ClassBank) -> None:
    folder = bank.path.parent
    old, fresh, foreign = (folder / n for n in (".x.bank.1.part", ".y.bank.2.part", "z.part"))
    for path in (old, fresh, foreign):
        path.write_text("half")
    for path in (old, foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    ClassBank.write(bank.path, RECIPE, Tiny().build())
    assert sorted(os.listdir(folder)) == sorted([bank.path.name, fresh.name, foreign.name])


def test_builders_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.bank"
    classes = list(Tiny().build())
    with ThreadPoolExecutor(8) as pool:
        banks = list(pool.map(lambda _: ClassBank.write(path, RECIPE, classes), range(24)))
    for bank in banks:
        np.testing.assert_array_equal(bank.examples, np.concatenate([c.examples for c in classes]))
    assert os.listdir(tmp_path) == ["a.bank"]


def test_pickle_carries_the_path_and_not_the_images(bank: ClassBank) -> None:
    data = pickle.dumps(bank)
    assert len(data) < 3000
    np.testing.assert_array_equal(pickle.loads(data).examples, bank.examples)


def test_cache_option_then_variable_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IMAML_CACHE", raising=False)
    assert bank_path(None, RECIPE).parent == tmp_path / ".cache" / "imaml_lightning"
    monkeypatch.setenv("IMAML_CACHE", str(tmp_path / "b"))
    assert bank_path(None, RECIPE).parent == tmp_path / "b"
    assert bank_path("~/c", RECIPE).parent == tmp_path / "c"
