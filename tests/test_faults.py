"""Faults of real processes: signals, ranks that fail, numbers that are not finite, disks and servers that are not there."""

from __future__ import annotations

import csv
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import PEACE, SMALL, run, sabotage
from torture import FIT, RUN, all_gone, kill_and_resume, same, start, state

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
TIMEOUT = ["--trainer.strategy.class_path", "DDPStrategy", "--trainer.strategy.init_args.timeout", "0:02:00"]
slow = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _without_wandb() -> object:
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "disabled")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    done = run("fit", *FIT, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def end(process: subprocess.Popen[str], within: float = 60) -> tuple[int, str]:
    """Exit status and last line on standard error of a command that ends, with all its processes, in time."""
    _, errors = process.communicate(timeout=600)
    assert all_gone(process.pid, within)
    return process.returncode, errors.splitlines()[-1]


def wait_for_training(process: subprocess.Popen[str]) -> None:
    for line in process.stdout:
        if line.startswith("meta-step"):
            return


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=slow) for seed in (0, 7, 9))])
def test_kill_and_resume_is_bitwise_equal(reference: Path, tmp_path: Path, seed: int) -> None:
    assert kill_and_resume([], seed, tmp_path, state(reference))


@pytest.mark.parametrize(
    ("number", "status", "kind"),
    [
        (signal.SIGTERM, 143, []),
        pytest.param(signal.SIGINT, 130, [], marks=slow),
        pytest.param(signal.SIGTERM, 143, DDP, marks=slow),
    ],
)
def test_signal_saves_and_the_run_goes_on(
    reference: Path, tmp_path: Path, number: int, status: int, kind: list[str]
) -> None:
    process = start("fit", *FIT, *kind, folder=tmp_path)
    wait_for_training(process)
    process.send_signal(number)
    began = time.monotonic()
    code, last = end(process)
    assert code == status
    assert time.monotonic() - began < 30
    assert last.startswith(f"error: stopped by {number.name} after meta-step ")
    assert last.endswith(f"--ckpt_path {RUN}/last.ckpt")
    if not kind:
        assert run("fit", *FIT, "--ckpt_path", "last", folder=tmp_path).returncode == 0
        assert same(state(tmp_path), state(reference))


@slow
def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    process = start("fit", *FIT, *sabotage("hang", 6), folder=tmp_path)
    while not (tmp_path / RUN / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, last = end(process, within=5)
    assert code == 130
    assert last.startswith("error: left at once")
    assert torch.load(tmp_path / RUN / "last.ckpt", weights_only=True)["global_step"] == 4


@slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("act", ["fail", "kill", "terminate", "hang"])
def test_no_rank_survives_another(tmp_path: Path, act: str, rank: int) -> None:
    # The timeout holds for the ranks' joining as well, which a busy machine makes slow.
    timeout = TIMEOUT if act == "hang" else []
    process = start("fit", *FIT, *DDP, *timeout, *sabotage(act, 6, "on_train_batch_start", rank), folder=tmp_path)
    _, errors = process.communicate(timeout=600)
    assert all_gone(process.pid, within=60)
    assert process.returncode == 143 if act == "terminate" else process.returncode != 0
    if act == "fail":
        assert 'raise RuntimeError("sabotage")' in errors  # the traceback of the rank that failed
    assert torch.load(tmp_path / RUN / "last.ckpt", weights_only=True)["global_step"] >= 4


@pytest.mark.parametrize("act", ["break_weights", pytest.param("break_optimizer", marks=slow)])
def test_divergence_ends_the_run_and_keeps_the_last_finite_checkpoint(tmp_path: Path, act: str) -> None:
    code, last = end(start("fit", *FIT, *sabotage(act, 6), folder=tmp_path))
    assert code == 4
    assert "not finite" in last
    held = torch.load(tmp_path / RUN / "last.ckpt", weights_only=True)
    assert held["global_step"] == 4
    assert all(t.isfinite().all() for t in held["state_dict"].values())


def test_a_fault_shows_its_traceback(tmp_path: Path) -> None:
    process = start("fit", *FIT, *sabotage("fail", 2), folder=tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1] == "error: RuntimeError: sabotage"


def test_output_that_cannot_be_written_ends_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("fit", *FIT, "--output", "file", folder=tmp_path)
    assert done.returncode == 2
    assert "--output" in done.stderr.splitlines()[-1]
    assert "meta-step" not in done.stdout


@slow
def test_validation_and_logging_change_nothing(reference: Path, tmp_path: Path) -> None:
    quiet = ["--trainer.limit_val_batches", "0", "--trainer.logger", "false", "--trainer.log_every_n_steps", "1000"]
    assert run("fit", *FIT, *quiet, folder=tmp_path).returncode == 0
    ours, theirs = (torch.load(folder / RUN / "last.ckpt", weights_only=True) for folder in (tmp_path, reference))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(ours[key], theirs[key]), key


@slow
def test_resumed_options_win_or_are_refused(reference: Path) -> None:
    options = ["--ckpt_path", f"{RUN}/last.ckpt", "--model.optimizer.init_args.lr", "0.5"]
    done = run("fit", *FIT, *options, folder=reference)
    assert done.returncode == 2
    assert "--model.optimizer.init_args.lr is 0.5 here and 0.001 in the checkpoint" in done.stderr.splitlines()[-1]


class TestWeightsAndBiases:
    """W&B may be absent, unreachable or without a key: nothing waits, nothing is lost, no key is written down."""

    @pytest.fixture(autouse=True)
    def _enabled(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no netrc of the user's
        (tmp_path / "home").mkdir()

    @slow
    def test_without_a_key_at_a_terminal_nothing_is_asked(self, tmp_path: Path) -> None:
        ours, theirs = pty.openpty()
        process = start("fit", *FIT, "--trainer.max_steps", "4", folder=tmp_path, stdin=theirs)
        _, errors = process.communicate(timeout=600)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == 0, errors
        assert rows(tmp_path)[-1] == "3"

    @slow
    def test_without_a_server_training_goes_on_offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        key = "0123456789" * 4
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        done = run("fit", *FIT, "--trainer.max_steps", "4", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning: no W&B server" in done.stderr
        assert rows(tmp_path)[-1] == "3"
        written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
        assert [path for path in written if key.encode() in path.read_bytes()] == []

    @slow
    def test_the_same_run_after_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        process = start("fit", *FIT, *sabotage("kill", 7), folder=tmp_path)
        process.communicate(timeout=600)
        assert all_gone(process.pid, within=60)
        assert run("fit", *FIT, *PEACE, "--ckpt_path", "last", folder=tmp_path).returncode == 0
        runs = list((tmp_path / RUN / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(runs) == 2
        assert len({path.name for path in runs}) == 1  # the name is the run's id
        assert rows(tmp_path) == [str(step) for step in range(1, 16, 2)]


def rows(folder: Path) -> list[str]:
    """Steps of the training rows of metrics.csv."""
    with (folder / RUN / "metrics.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file) if row.get("train/loss")]


@slow
def test_offline_training_reaches_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strace = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True)
    if strace.returncode:
        pytest.skip("strace is not there, or may not trace")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=connect,bind,sendto", "-o", str(log), sys.executable, "-m"]
    options = ["imaml_lightning", "fit", *SMALL, "--trainer.max_steps", "4"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    internet = [line for line in log.read_text().splitlines() if "AF_INET" in line and "127.0.0.1" not in line]
    assert internet == []
