"""Configurations: what cannot be meant is refused in one sentence that names the file and the key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from command import refused

from imaml_lightning.cli.config import check_restored, peek_options, refuse_lost_options
from imaml_lightning.errors import UsageError

BAD_FILES = {
    "twice": (b"name: a\ndata:\n  way: 5\n  way: 3\n", "way comes twice, the second time in line 4"),
    "twice at the top": (b"data: {way: 5}\ndata: {shot: 1}\n", "data comes twice"),
    "empty": (b"", "holds no options"),
    "a list": (b"- data\n", "holds no options"),
    "a word": (b"data\n", "holds no options"),
    "cut off": (b"data: {way: [", "line 1"),
    "tab": (b"data:\n\tway: 5\n", "line 2"),
    "not text": (b"\xff\xfe\x00data", "bad.yaml"),
    "a tag that makes objects": (b"data: !!python/object/apply:os.system [true]\n", "python/object"),
    "unknown key": (b"data: {wayz: 5}\n", "wayz"),
    "unknown section": (b"dataa: {way: 5}\n", "dataa"),
    "wrong type": (b"data: {way: many}\n", "way"),
    "a number for a section": (b"data: 5\n", "data"),
    "too deep": (b"[" * 3000, "bad.yaml"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    content, named = BAD_FILES[case]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refused("fit", "--config", str(path), capsys=capsys)
    assert named in message
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_options_are_peeked_in_files_and_on_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: from_file\noutput: there\ntrust: never_from_a_file\n")
    assert peek_options(["fit", "--config", str(path), "--name", "x", "--ckpt_path=last", "--trust", "mine"]) == {
        "name": "x",
        "output": "there",
        "ckpt_path": "last",
        "trust": "mine",
    }


LATER = "trainer: {max_steps: 9}\nmodel: {network: {class_path: Conv4, init_args: {filters: 8}}}\nname: x\n"


@pytest.mark.parametrize(
    "lost",
    [
        ["--trainer.max_steps", "2"],
        ["--trainer.max_steps=2"],
        ["--model.network", "MLP"],
        ["--model.network.filters", "2"],
        ["--model.network.init_args.filters=2"],
        ["--trainer.max_steps+=2"],
    ],
)
def test_options_that_a_later_file_would_overrule_are_refused(lost: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(LATER)
    option = lost[0].partition("=")[0].rstrip("+")
    for given in (["--config", str(path)], [f"--config={path}"], ["-c", str(path)]):
        with pytest.raises(UsageError, match=f"{option} comes before --config .*put --config first"):
            refuse_lost_options(["fit", *lost, *given])
        refuse_lost_options(["fit", *given, *lost])


def test_options_that_no_later_file_sets_may_come_first(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(LATER)
    refuse_lost_options(["fit", "--trainer.max_epochs", "2", "--output", "o", "--config", str(path), "--config"])


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "data": {"way": 5},
    "model": {
        "network": {"class_path": "n", "init_args": {"filters": 8}},
        "adaptation": {"class_path": "a", "init_args": {"inner_solver": {"lr": 0.1}, "proximal": {"strength": 2.0}}},
        "optimizer": {"class_path": "o", "init_args": {"lr": 0.1}},
        "clip_norm": None,
    },
}


@pytest.mark.parametrize(
    ("key", "resumes", "evaluates"),
    [
        ("model.network.init_args.filters", False, False),
        ("model.adaptation.init_args.proximal.strength", False, False),
        ("model.optimizer.init_args.lr", False, True),
        ("model.optimizer.class_path", False, True),
        ("seed_everything", False, True),
        ("model.adaptation.init_args.inner_solver.lr", True, True),
        ("model.clip_norm", True, True),
        ("data.way", True, True),
    ],
)
def test_an_option_wins_or_is_refused(key: str, resumes: bool, evaluates: bool) -> None:
    ours = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    section = ours
    for name in path:
        section = section[name]
    section[last] = 7
    for resume, allowed in ((True, resumes), (False, evaluates)):
        if allowed:
            check_restored(CONFIG, ours, resume)
        else:
            with pytest.raises(UsageError, match=key):
                check_restored(CONFIG, ours, resume)


def test_options_of_other_versions_do_not_count() -> None:
    newer = copy.deepcopy(CONFIG)
    newer["model"]["unheard_of"] = 1
    check_restored(CONFIG, newer, True)
    check_restored(newer, CONFIG, True)


#: Where a number may be given, and the numbers to be refused there before data is touched.
NUMBERS = {
    **{f"data.{name}": ("0", "-1", "nan", "1e30") for name in ("way", "shot", "query", "tasks", "eval_query")},
    **{f"data.{name}": ("0", "-1", "nan", "1e30") for name in ("train_batches", "val_episodes", "test_episodes")},
    **{f"data.{name}": ("0", "-1", "nan", "1e30", "1..3") for name in ("eval_way", "eval_shot")},
    **{f"data.augment.{name}": ("-1", "nan", ".inf") for name in ("rotation", "scale", "shear", "shift", "elastic")},
    **{f"data.{name}": ("-1", "nan", "0.5") for name in ("seed", "workers")},
    "model.network.init_args.filters": ("0", "-1", "nan", "99999999"),
    "model.task_chunk": ("0", "-1", "nan"),
    "model.clip_norm": ("0", "-1", "nan", ".inf"),
    "model.optimizer.init_args.lr": ("-1", "nan", ".inf"),
    "model.adaptation.init_args.inner_solver.init_args.lr": ("0", "-1", "nan", ".inf"),
    "model.adaptation.init_args.inner_solver.init_args.max_steps": ("-1", "nan", "1e30"),
    "model.adaptation.init_args.inner_solver.init_args.rtol": ("-1", "nan", "2"),
    "model.adaptation.init_args.linear_solver.init_args.max_steps": ("-1", "nan", "1e30"),
    "model.adaptation.init_args.linear_solver.init_args.rtol": ("-1", "nan", "2"),
    "model.adaptation.init_args.proximal.init_args.strength": ("0", "-1", "nan", ".inf"),
    "trainer.max_steps": ("-2", "nan"),
    "trainer.log_every_n_steps": ("0", "-1", "nan"),
    "last.every_n_train_steps": ("0", "-1", "nan"),
    "seed_everything": ("-1", "nan", "1e30"),
}


SAMPLE = {("data.way", "0"), ("data.tasks", "1e30"), ("trainer.log_every_n_steps", "0"), ("seed_everything", "-1")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, marks=() if (key, value) in SAMPLE else pytest.mark.slow)
        for key, values in NUMBERS.items()
        for value in values
    ],
)
def test_numbers_that_cannot_be_meant(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("fit", f"--{key}={value}", "--trainer.fast_dev_run", "true", capsys=capsys)
    assert key.rpartition(".")[2] in message
    assert not list(tmp_path.iterdir())
