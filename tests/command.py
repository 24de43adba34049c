"""The real command line, in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[1] / "configs"

#: A fit that takes seconds: sinusoids with a tiny network.
SMALL = [
    *("--config", str(CONFIGS / "sinusoid_5shot.yaml")),
    *("--data.train_batches", "6", "--data.tasks", "4", "--data.val_episodes", "4", "--data.test_episodes", "8"),
    *("--data.eval_query", "5", "--model.network.init_args.hidden", "[8]"),
    *("--model.adaptation.init_args.inner_solver.init_args.max_steps", "3"),
    *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "2", "--last.every_n_train_steps", "4"),
]


def run(*args: str, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """``python -m imaml_lightning`` in a process of its own, in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "imaml_lightning", *args], cwd=folder, capture_output=True, text=True, timeout=timeout
    )


def refused(*args: str, capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one sentence, last on standard error, with which the command line refuses ``args``; asserts the exit status."""
    from imaml_lightning.cli import main

    with pytest.raises(SystemExit) as caught:
        main(list(args))
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == status
    assert len(lines) <= 5
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not [line for line in lines if line.startswith("Traceback")]
    return lines[-1]


#: What a resumed run must be given, or it would be sabotaged again.
PEACE = ["--trust", "saboteur", "--trainer.callbacks", "null"]


def sabotage(act: str, step: int, hook: str = "on_train_batch_end", rank: int = 0) -> list[str]:
    """The options that set the Saboteur of saboteur.py to work."""
    callback = "--trainer.callbacks+=saboteur.Saboteur"
    fields = {"act": act, "step": step, "hook": hook, "rank": rank}
    return ["--trust", "saboteur", callback, *(f"--trainer.callbacks.{name}={value}" for name, value in fields.items())]
