"""Checkpoints: whole or not there, sound or refused, and never executed."""

from __future__ import annotations

import http.server
import os
import resource
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import SMALL, refused
from lightning.pytorch import Trainer
from tiny_learners import smooth_conv
from torture import flip_bits, kill_in_saves

from imaml_lightning import MetaLearner
from imaml_lightning.errors import DivergedError, UsageError
from imaml_lightning.learner.checkpoint import CONFIG_KEY, WholeCheckpoints, find_checkpoint, read_checkpoint
from imaml_lightning.learner.whole_file import sweep


def content(number: float = 1.0) -> dict[str, Any]:
    weights = torch.full((5000,), number)
    optimizer = {"state": {0: {"exp_avg": weights}}}
    version = {"pytorch-lightning_version": "2.6.4"}
    return version | {"state_dict": {"w": weights}, "optimizer_states": [optimizer], CONFIG_KEY: {}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "runs/name/000/last.ckpt"
    WholeCheckpoints().save_checkpoint(content(), path)
    return path


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_kill_inside_a_save_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.isdir("/dev/shm"):
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system, across which nothing can be renamed
    assert kill_in_saves(10, tmp_path) == 10


def test_flipped_bits_are_caught(saved: Path, tmp_path: Path) -> None:
    assert flip_bits(200, tmp_path, saved) == 200


def test_sweep_removes_orphans_only(saved: Path) -> None:
    (saved.parent / ".last.ckpt.0123.part").write_bytes(b"half")
    (saved.parent / "notes.part").write_bytes(b"the user's")
    sweep(saved.parent)
    assert names(saved) == ["last.ckpt", "notes.part"]


def test_no_room_leaves_the_checkpoint_before(saved: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            WholeCheckpoints().save_checkpoint(content(2.0), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(saved)["state_dict"]["w"][0] == 1.0
    assert names(saved) == ["last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(), path)
    with pytest.raises(OSError, match="make room"):
        WholeCheckpoints().save_checkpoint(content(2.0), path)
    assert read_checkpoint(path)["state_dict"]["w"][0] == 1.0
    assert names(path) == ["last.ckpt"]


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_output_that_takes_nothing_ends_before_training(
    small_disk: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "full":
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(bytes(10**6))
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "choose another --output" in refused("fit", *SMALL, "--output", str(small_disk), capsys=capsys)


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_what_is_not_finite_is_never_written(saved: Path, part: str) -> None:
    broken = content(2.0) | {part: {"x": [torch.tensor([1.0, torch.inf])]}}
    with pytest.raises(DivergedError, match=rf"{part}\.x\.0"):
        WholeCheckpoints().save_checkpoint(broken, saved)
    assert read_checkpoint(saved)["state_dict"]["w"][0] == 1.0


DAMAGE = {
    "truncated": lambda whole: whole[:-500],
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "text": lambda whole: b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_last_falls_back(
    saved: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(DAMAGE[damage](whole))
    with pytest.raises(UsageError, match=str(saved)):
        find_checkpoint(str(saved), "", "")
    output = str(tmp_path / "runs")
    with pytest.raises(UsageError, match=str(saved)):
        find_checkpoint("last", output, "name")  # there is no other
    for name, age in (("best", 2), ("previous", 1)):
        path = saved.with_name(f"{name}.ckpt")
        path.write_bytes(whole)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_checkpoint("last", output, "name")[0] == saved.with_name("previous.ckpt")
    assert f"warning: {saved} is damaged" in capsys.readouterr().err
    saved.with_name("previous.ckpt").write_bytes(b"")
    assert find_checkpoint("last", output, "name")[0] == saved.with_name("best.ckpt")


class Trap:
    """Executed code, were it unpickled, would make the file ``sprung``."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    path, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
    torch.save(content() | {"hyper_parameters": {"network": Trap(sprung)}}, path)
    yield path
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert sprung.exists()


def test_code_in_a_checkpoint_is_not_executed(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for read in (read_checkpoint, MetaLearner.load_from_checkpoint):
        with pytest.raises(UsageError, match="trap"):
            read(trap)
    with pytest.raises(UsageError, match="trap"):
        WholeCheckpoints().load_checkpoint(trap, weights_only=False)
    for subcommand in ("fit", "validate", "test", "predict"):
        assert str(trap) in refused(subcommand, *SMALL, "--ckpt_path", str(trap), capsys=capsys)


def test_nothing_is_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/trap.ckpt"
        for subcommand in ("fit", "test"):
            assert url in refused(subcommand, *SMALL, "--ckpt_path", url, capsys=capsys)
        assert url in refused("fit", "--config", url, capsys=capsys)
        with pytest.raises(UsageError, match="does not exist"):
            MetaLearner.load_from_checkpoint(url)
        server.shutdown()
        thread.join()
    assert not asked


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of a stranger's, which is importable and is not to be imported."""
    name = f"stranger_{uuid.uuid4().hex}"  # what was once trusted stays so in this process
    (tmp_path / f"{name}.py").write_text("import torch\nclass Net(torch.nn.Linear): pass\ndef adam(p): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_checkpoint_names_only_trusted_classes(tmp_path: Path, stranger: str) -> None:
    network = {"class_path": f"{stranger}.Net", "init_args": {"in_features": 1, "out_features": 1}}
    path = tmp_path / "stranger.ckpt"
    hostile: list[dict[str, Any]] = [
        {"network": network},
        {"network": f"{stranger}.Net"},
        {"optimizer": f"{stranger}.adam"},
        {"adaptation": {"class_path": "imaml_lightning.adaptation.FirstOrder", "init_args": {"inner_solver": network}}},
    ]
    for options in hostile:
        torch.save(content() | {"hyper_parameters": options | {"_instantiator": INSTANTIATOR}}, path)
        with pytest.raises(UsageError, match=rf"{stranger}\.(Net|adam)"):
            MetaLearner.load_from_checkpoint(path)
    torch.save(content() | {"hyper_parameters": {"_instantiator": f"{stranger}.adam"}}, path)
    with pytest.raises(UsageError, match=stranger):
        MetaLearner.load_from_checkpoint(path)
    assert stranger not in sys.modules
    weights = {f"network.{n}": t for n, t in torch.nn.Linear(1, 1).state_dict().items()}
    weights |= {"adaptation.proximal.raw": torch.ones(1), "skipped_steps": torch.tensor(0)}
    options = {"network": network, "_instantiator": INSTANTIATOR}
    torch.save(content() | {"state_dict": weights, "hyper_parameters": options}, path)
    learner = MetaLearner.load_from_checkpoint(path, trust=[stranger])
    assert type(learner.network).__name__ == "Net"


INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


@pytest.mark.parametrize("route", ["option", "file", "callback"])
def test_the_command_line_imports_only_trusted_packages(
    stranger: str, tmp_path: Path, route: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "hostile.yaml"
    config.write_text(f"model: {{network: {{class_path: {stranger}.Net}}}}\ntrust: {stranger}\n")
    args = {
        "option": ["--model.network", f"{stranger}.Net"],
        "file": ["--config", str(config)],
        "callback": [f"--trainer.callbacks+={stranger}.Net"],
    }[route]
    assert stranger in refused("fit", *args, "--trainer.fast_dev_run", "true", capsys=capsys)
    assert stranger not in sys.modules
    if route == "option":
        refused("fit", *args, "--trust", stranger, "--trainer.fast_dev_run", "true", capsys=capsys)  # of wrong fields
        assert stranger in sys.modules


def test_a_trainer_of_ones_own_reads_and_writes_whole_checkpoints(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[WholeCheckpoints()], enable_checkpointing=False)
    trainer.strategy.connect(MetaLearner(smooth_conv()))
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert "network.conv.weight" in read_checkpoint(tmp_path / "own.ckpt")["state_dict"]
