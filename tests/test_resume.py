"""A run that is killed and resumed, or spread over two processes, learns the same weights as one that is not."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command import SMALL, run

STEPS = ["--trainer.max_steps", "40"]


def last(folder: Path) -> dict[str, Any]:
    """The last checkpoint of the only run in ``folder``."""
    return torch.load(folder / "runs/sinusoid_5shot/000/last.ckpt", weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, through nested containers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run("fit", *SMALL, *STEPS, folder=folder).returncode == 0
    return folder


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_and_resume_is_bitwise_equal(uninterrupted: Path, tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-m", "imaml_lightning", "fit", *SMALL, *STEPS]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "runs/sinusoid_5shot/000/last.ckpt"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).random() * 0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last(tmp_path)["global_step"] < 40, "the run ended before it was killed"

    resumed = run("fit", *SMALL, *STEPS, "--ckpt_path", "last", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = last(tmp_path), last(uninterrupted)
    for key in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(ours[key], theirs[key])
    assert training_rows(tmp_path) == training_rows(uninterrupted)


def training_rows(folder: Path) -> list[tuple[str, str]]:
    """Step and training loss of each logged meta-step: no row lost, none twice."""
    with (folder / "runs/sinusoid_5shot/000/metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_two_processes_learn_the_same_weights(uninterrupted: Path, tmp_path: Path) -> None:
    done = run("fit", *SMALL, *STEPS, "--trainer.devices", "2", "--trainer.strategy", "ddp", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, theirs = last(tmp_path)["state_dict"], last(uninterrupted)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        # The same episodes in two halves: only the order of summation differs.
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "runs/sinusoid_5shot").iterdir()) == ["000"]
