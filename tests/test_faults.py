"""Faults of real processes: signals, ranks that fail, numbers that are not finite, disks and servers that are not there."""

from __future__ import annotations

import contextlib
import csv
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import wandb
from command import CONFIGS, PEACE, SMALL, refused, run, sabotage
from tiny_data import write_omniglot_root
from torture import FIT, RUN, all_gone, kill_and_resume, same, start, state
from wandb_stub import KEY, Server, serving

from imaml_lightning.data import Omniglot
from imaml_lightning.run.loggers import wandb_logger

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


def wait_for(line: str, process: subprocess.Popen[str]) -> None:
    """Until the process prints it; ``meta-step`` comes after each validation."""
    assert any(printed.startswith(line) for printed in process.stdout)


@slow
@pytest.mark.parametrize("seed", [0, 3, 7, 9])
def test_kill_and_resume_is_bitwise_equal(reference: Path, tmp_path: Path, seed: int) -> None:
    assert kill_and_resume([], seed, tmp_path, state(reference))


@pytest.mark.parametrize("act", ["kill_before_log", pytest.param("terminate", marks=slow)])
def test_no_row_is_lost_between_a_save_and_its_log(reference: Path, tmp_path: Path, act: str) -> None:
    start("fit", *FIT, *sabotage(act, 12), folder=tmp_path).communicate(timeout=600)
    assert rows(tmp_path)[-1] == "9"  # that of step 11 is due, and the checkpoint has been taken
    assert torch.load(tmp_path / RUN / "last.ckpt", weights_only=True)["global_step"] == 12
    assert run("fit", *FIT, *PEACE, "--ckpt_path", "last", folder=tmp_path).returncode == 0
    assert same(state(tmp_path), state(reference))


@slow
def test_any_checkpoint_of_a_run_goes_on(reference: Path, tmp_path: Path) -> None:
    """``last`` from best.ckpt where the two others are damaged."""
    start("fit", *FIT, *sabotage("kill", 13), folder=tmp_path).communicate(timeout=600)
    for name in ("last", "previous"):
        (tmp_path / RUN / f"{name}.ckpt").write_bytes(b"")
    done = run("fit", *FIT, *PEACE, "--ckpt_path", "last", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"going on from {RUN}/best.ckpt" in done.stderr
    assert same(state(tmp_path), state(reference))


@pytest.mark.parametrize(
    ("number", "status", "kind"),
    [
        (signal.SIGTERM, 143, ["--data.workers", "2"]),
        pytest.param(signal.SIGINT, 130, ["--data.workers", "2"], marks=slow),
        pytest.param(signal.SIGTERM, 143, DDP, marks=slow),
        pytest.param(signal.SIGINT, 130, DDP, marks=slow),
    ],
)
@pytest.mark.parametrize("to_all", [True, pytest.param(False, marks=slow)], ids=["to all processes", "to the first"])
def test_signal_saves_and_the_run_goes_on(
    reference: Path, tmp_path: Path, number: int, status: int, kind: list[str], to_all: bool
) -> None:
    """A terminal, and many a cluster, sends it to every process of the run."""
    process = start("fit", *FIT, *kind, folder=tmp_path)
    wait_for("meta-step", process)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    began = time.monotonic()
    code, last = end(process)
    assert code == status
    assert time.monotonic() - began < 30
    assert last.startswith(f"error: stopped by {number.name} after meta-step ")
    assert last.endswith(f"--ckpt_path {RUN}/last.ckpt")
    if kind != DDP:
        assert run("fit", *FIT, *kind, "--ckpt_path", "last", folder=tmp_path).returncode == 0
        assert same(state(tmp_path), state(reference))


@pytest.mark.parametrize(
    ("numbers", "status"),
    [([signal.SIGINT, signal.SIGINT], 130), pytest.param([signal.SIGTERM], 143, marks=slow)],
    ids=["second interrupt", "SIGTERM"],
)
def test_a_meta_step_without_end_is_left(tmp_path: Path, numbers: list[signal.Signals], status: int) -> None:
    """At once at the second SIGINT; else when the time to finish it is over."""
    process = start("fit", *FIT, *sabotage("hang", 6), folder=tmp_path)
    wait_for("hanging", process)
    began = time.monotonic()
    for number in numbers:
        assert process.poll() is None
        process.send_signal(number)
        time.sleep(1)
    code, last = end(process, within=5)
    assert code == status
    assert time.monotonic() - began < 30
    assert last.startswith(f"error: left at once ({numbers[-1].name})")
    assert torch.load(tmp_path / RUN / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("act", "rank"),
    [
        ("fail", 1),
        pytest.param("fail", 0, marks=slow),
        *(pytest.param(act, rank, marks=slow) for act in ("kill", "terminate", "hang", "stop") for rank in (0, 1)),
    ],
)
def test_no_rank_survives_another(tmp_path: Path, act: str, rank: int) -> None:
    # The timeout holds for the ranks' joining as well, which a busy machine makes slow.
    timeout = TIMEOUT if act in ("hang", "stop") else []
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


@slow
def test_a_fault_shows_its_traceback(tmp_path: Path) -> None:
    process = start("fit", *FIT, *sabotage("fail", 2), folder=tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1] == "error: RuntimeError: sabotage"


def test_output_that_cannot_be_written_ends_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another --output" in refused("fit", *SMALL, "--output", str(tmp_path / "file"), capsys=capsys)


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
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no netrc of the user's
        (tmp_path / "home").mkdir()

    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch, _enabled: None) -> Iterator[Server]:
        with serving() as server:
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            monkeypatch.setenv("WANDB_API_KEY", KEY)
            yield server

    @slow
    def test_without_a_key_at_a_terminal_nothing_is_asked(self, tmp_path: Path) -> None:
        ours, theirs = pty.openpty()
        terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        process = start("fit", *FIT, "--trainer.max_steps", "4", folder=tmp_path, **terminal)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while select.select([ours], [], [], 300)[0] and (part := os.read(ours, 65536)):
                shown += part
        os.close(ours)
        assert all_gone(process.pid, within=5), shown.decode()
        assert process.wait() == 0, shown.decode()
        assert b"api key" not in shown.lower()
        assert rows(tmp_path) == ["1", "3"]

    def test_what_cannot_be_a_key_is_said_and_not_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "none")
        assert wandb_logger(tmp_path, {})._offline
        wandb.teardown()
        assert "warning: no W&B" in capsys.readouterr().err

    @slow
    @pytest.mark.parametrize("key", [KEY, "none"], ids=["no server", "no key"])
    def test_without_a_server_or_key_training_goes_on_offline(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        done = run("fit", *FIT, "--trainer.max_steps", "4", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning: no W&B" in done.stderr
        assert rows(tmp_path) == ["1", "3"]
        assert holding(KEY, tmp_path) == []

    @slow
    def test_a_server_that_goes_away_takes_nothing_along(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        serve = "import time, wandb_stub\nwith wandb_stub.serving() as s: print(s.url, flush=True), time.sleep(600)"
        server = subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True)
        monkeypatch.setenv("WANDB_BASE_URL", server.stdout.readline().strip())
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        process = start("fit", *FIT, folder=tmp_path)
        wait_for("meta-step", process)
        server.kill()
        server.communicate()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert all_gone(process.pid, within=30)
        assert rows(tmp_path) == [str(step) for step in range(1, 16, 2)]
        assert holding(KEY, tmp_path) == []

    @slow
    def test_the_same_run_after_a_kill_online(self, tmp_path: Path, server: Server) -> None:
        start("fit", *FIT, *sabotage("kill", 7), folder=tmp_path).communicate(timeout=600)
        assert run("fit", *FIT, *PEACE, "--ckpt_path", "last", folder=tmp_path).returncode == 0
        assert server.runs == {(tmp_path / RUN / "wandb_id").read_text()}
        assert server.finished
        sent = {row["trainer/global_step"] for row in server.history if "train/loss" in row}
        assert set(range(3, 16, 2)) <= sent  # the earlier row, if it was not sent, is in wandb/ on the disk
        assert holding(KEY, tmp_path) == []

    @slow
    def test_the_same_run_after_a_kill_offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def holding(secret: str, folder: Path) -> list[Path]:
    """The files in which it stands."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    return [path for path in written if secret.encode() in path.read_bytes()]


#: Any attempt of a process, or of one that it starts, to reach an address of the internet, or to ask for one.
WATCH = """
import os, socket, sys
def watch(event, args):
    if event == "socket.getaddrinfo" or (event in ("socket.connect", "socket.sendto") and args[0].family != socket.AF_UNIX):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {args[1:]}\\n")
sys.addaudithook(watch)
"""


class TestOffline:
    """With the data in place nothing reaches for a network: Omniglot from a folder, its bank already prepared."""

    @pytest.fixture
    def fit(self, tmp_path: Path) -> list[str]:
        write_omniglot_root(tmp_path, count=100, drawings=20)
        Omniglot(str(tmp_path), splits="vinyals").prepare()
        return [
            *("fit", "--config", str(CONFIGS / "omniglot_5w1s.yaml"), "--data.source.init_args.splits", "vinyals"),
            *("--data.source.init_args.root", str(tmp_path), "--data.train_batches", "2", "--data.workers", "2"),
            *("--data.tasks", "2", "--data.val_episodes", "2", "--data.test_episodes", "2", "--trainer.max_steps", "2"),
            *("--model.network.init_args.filters", "4", "--trainer.accelerator", "cpu"),
        ]

    def test_no_socket_is_opened(self, fit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log, site = tmp_path / "watched", tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(WATCH)
        monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ['PYTHONPATH']}")
        monkeypatch.setenv("WATCHED", str(log))
        reach = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
        subprocess.run([sys.executable, "-c", reach], check=True)
        assert "127.0.0.1" in log.read_text()  # the watch is awake
        log.unlink()
        done = run(*fit, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not log.exists()

    @slow
    def test_wandb_offline_reaches_its_own_service_only(
        self, fit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if shutil.which("strace") is None:
            pytest.skip("strace is not there")
        monkeypatch.setenv("WANDB_MODE", "offline")
        log = tmp_path / "trace"
        command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(log), sys.executable, "-m"]
        done = subprocess.run([*command, "imaml_lightning", *fit], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "AF_UNIX" in log.read_text()
        assert [line for line in log.read_text().splitlines() if "AF_INET" in line and "127.0.0.1" not in line] == []
