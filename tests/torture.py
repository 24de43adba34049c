"""Kills runs and saves at random moments, again and again, and counts what survives: ``make torture``."""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from command import CONFIGS, PEACE, SMALL, run, sabotage

from imaml_lightning.errors import UsageError
from imaml_lightning.learner.checkpoint import WholeCheckpoints, read_checkpoint
from imaml_lightning.learner.whole_file import sweep

RUN = "runs/sinusoid_5shot/000"
STEPS, EPOCH = 16, 8
#: Two epochs with a learned λ and a scheduler; a checkpoint every four meta-steps.
FIT = [
    *SMALL,
    *("--trainer.max_steps", str(STEPS), "--data.train_batches", str(EPOCH)),
    *("--model.adaptation.init_args.proximal.init_args.learn", "true"),
    *("--model.scheduler", "torch.optim.lr_scheduler.StepLR", "--model.scheduler.init_args.step_size", "5"),
]
KINDS = {
    "one process": [],
    "one process, 2 workers": ["--data.workers", "2"],
    "two ranks": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "two ranks, 2 workers": ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.workers", "2"],
}
HOOKS = [
    *("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"),
    *("on_validation_start", "on_validation_batch_end", "on_validation_end"),
]


def state(folder: Path) -> dict[str, Any]:
    """All that a run must have in common with one that was not interrupted, bit for bit."""
    kept = {}
    for name in ("last", "best"):
        checkpoint = torch.load(folder / RUN / f"{name}.ckpt", weights_only=True)
        keys = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "imaml_lightning_rows")
        kept[name] = {key: checkpoint[key] for key in keys}
        kept[name]["batches"] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    with (folder / RUN / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("train/seconds", "train/waiting", "train/peak_memory_mb")
    kept["rows"] = [{name: value for name, value in row.items() if value and name not in measured} for row in rows]
    return kept


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def start(*args: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """``python -m imaml_lightning`` in a session of its own, so that all its processes can be found."""
    command = [sys.executable, "-m", "imaml_lightning", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)


def survivors(session: int) -> list[int]:
    """The processes of a session that are still there, zombies aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def all_gone(session: int, within: float) -> bool:
    """Whether every process of a session ends in time; those that do not are killed."""
    deadline = time.monotonic() + within
    while (left := survivors(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return not left


def kill_and_resume(kind: list[str], seed: int, folder: Path, reference: dict[str, Any]) -> bool:
    """Kill a run at a moment drawn by ``seed``, resume it, and compare it with ``reference``."""
    rng = random.Random(seed)
    if seed % 2:  # at a chosen point; half of the time around the last batch of an epoch
        step = EPOCH if rng.random() < 0.5 else rng.randrange(5, STEPS)
        hook = rng.choice(HOOKS if step == EPOCH else HOOKS[:2])
        rank = rng.randrange(2) if "ddp" in kind else 0
        act = "kill_before_log" if hook == "on_train_batch_end" and rng.random() < 0.5 else "kill"
        process = start("fit", *FIT, *kind, *sabotage(act, step, hook, rank), folder=folder)
        process.communicate(timeout=600)
    else:  # at any moment after the first checkpoint
        process = start("fit", *FIT, *kind, folder=folder)
        while not (folder / RUN / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(3 * rng.random())
        process.kill()
        process.communicate(timeout=600)
    gone = all_gone(process.pid, within=60)
    (folder / RUN / ".last.ckpt.0.part").write_bytes(b"half of a checkpoint")
    resumed = run("fit", *FIT, *kind, *PEACE, "--ckpt_path", "last", folder=folder, timeout=600)
    if resumed.returncode:
        print(resumed.stderr[-2000:], file=sys.stderr)
    swept = not list((folder / RUN).glob(".*"))
    return gone and swept and resumed.returncode == 0 and same(state(folder), reference)


def kill_in_saves(kills: int, folder: Path) -> int:
    """Kill a process that saves without end, ``kills`` times; how often a whole checkpoint was left, and no orphan after.

    Checkpoints hold their own number, so that a mixture of two would be seen. Forks of this process do the saving.
    """
    survived, path = 0, folder / "last.ckpt"
    for kill in range(kills):
        child = os.fork()
        if child == 0:
            number = 0
            while True:
                number += 1
                weights = {f"w{i}": torch.full((1000,), float(number)) for i in range(50)}
                WholeCheckpoints().save_checkpoint({"state_dict": weights, "number": number}, path)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.1 * random.Random(kill).random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            held = read_checkpoint(path)
        except UsageError:
            continue
        whole = all(bool((w == held["number"]).all()) for w in held["state_dict"].values())
        sweep(folder)
        survived += whole and [p.name for p in folder.iterdir()] == ["last.ckpt"]
    return survived


def flip_bits(flips: int, folder: Path, checkpoint: Path) -> int:
    """Flip one bit of a checkpoint, ``flips`` times; how often it was refused, or read as what it was before."""
    content, whole, caught = checkpoint.read_bytes(), read_checkpoint(checkpoint), 0
    path = folder / "flipped.ckpt"
    for flip in range(flips):
        at, damaged = random.Random(flip).randrange(8 * len(content)), bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            caught += same(read_checkpoint(path), whole)
        except UsageError:
            caught += 1
    return caught


def soak(hours: float, folder: Path) -> str:
    """Train for ``hours`` with all that a run does (validation, pictures, saves, W&B offline): its memory and open files.

    Both are read every ten seconds. A leak shows as a difference between the second quarter's median and the last one's.
    """
    options = [
        "--config",
        str(CONFIGS / "sinusoid_5shot.yaml"),
        "--data.train_batches",
        "50",
        "--data.val_episodes",
        "8",
    ]
    environment = os.environ | {"WANDB_MODE": "offline"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    process = start("fit", *options, "--trainer.max_steps", "100000000", folder=folder, **quiet)
    page, samples, end = os.sysconf("SC_PAGE_SIZE") / 1e6, [], time.monotonic() + 3600 * hours
    while time.monotonic() < end and process.poll() is None:
        time.sleep(10)
        proc = Path(f"/proc/{process.pid}")
        samples.append((int((proc / "statm").read_text().split()[1]) * page, len(list((proc / "fd").iterdir()))))
    assert process.poll() is None, f"the run ended by itself with status {process.returncode}"
    process.terminate()
    status, quarter = process.wait(timeout=60), len(samples) // 4
    with (folder / RUN / "metrics.csv").open() as file:
        step = max(int(row["step"]) for row in csv.DictReader(file))
    (m1, f1), (m2, f2) = (
        map(median, zip(*part, strict=True)) for part in (samples[quarter : 2 * quarter], samples[3 * quarter :])
    )
    return f"{step} meta-steps; memory {m1:.0f} MB, then {m2:.0f}; open files {f1:.0f}, then {f2:.0f}; exit {status}"


def main(seeds: int, kills: int, kinds: list[str], hours: float) -> None:
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        if os.path.isdir("/dev/shm"):
            os.environ["TMPDIR"] = "/dev/shm"  # another file system, across which nothing can be renamed
        for number, (kind, options) in enumerate((kind, KINDS[kind]) for kind in kinds):
            folder = base / str(number)
            folder.mkdir()
            assert run("fit", *FIT, *options, folder=folder).returncode == 0
            reference, survived = state(folder), 0
            for seed in range(seeds):
                killed = folder / f"seed{seed}"
                killed.mkdir()
                survived += (equal := kill_and_resume(options, seed, killed, reference))
                print(f"{kind}, seed {seed}: {'equal' if equal else 'NOT EQUAL'}", file=sys.stderr, flush=True)
            print(f"| kill -9 and resume, equal bit for bit: {kind} | {survived} of {seeds} |", flush=True)
        if kills:
            saves = base / "saves"
            saves.mkdir()
            survived, flips = kill_in_saves(kills, saves), 10 * kills
            print(f"| kill -9 inside a save, a whole checkpoint left | {survived} of {kills} |", flush=True)
            caught = flip_bits(flips, base, saves / "last.ckpt")
            print(f"| one bit of a checkpoint flipped, refused or without effect | {caught} of {flips} |", flush=True)
        if hours:
            soaked = base / "soak"
            soaked.mkdir()
            print(f"| training for {hours:g} h, second quarter against last | {soak(hours, soaked)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="Runs killed and resumed, of each kind.")
    parser.add_argument(
        "--kills", type=int, default=100, help="Saves killed, with ten times as many bits flipped; or 0."
    )
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--hours", type=float, default=2, help="How long to train to see memory and open files stay flat; or 0."
    )
    main(**vars(parser.parse_args()))
