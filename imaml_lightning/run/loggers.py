"""The two logs of a run: a CSV that survives a kill, and Weights & Biases without prompts and without waiting for its server."""

from __future__ import annotations

import csv
import os
import secrets
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from imaml_lightning.learner.checkpoint import ROWS_KEY
from imaml_lightning.learner.whole_file import whole_file

#: Seconds that W&B may take to start, and to upload what is left at the end.
PATIENCE = 20


class AppendingCSV(CSVLogger):
    """Lightning's CSV logger, but a resumed run continues the file, and every row is on disk at once.

    Args:
        folder: that of metrics.csv.
        checkpoint: where the run goes on; rows that it has not yet written are dropped, to be written again.
    """

    def __init__(self, folder: Path, checkpoint: dict[str, Any] | None) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._checkpoint = checkpoint

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, self._checkpoint)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment

    @property
    def rows(self) -> int:
        """Rows written so far (by the first rank, which writes them)."""
        return getattr(self._experiment, "rows", 0)


class _AppendingWriter(ExperimentWriter):
    def __init__(self, folder: str, checkpoint: dict[str, Any] | None) -> None:
        super().__init__(folder)
        self.rows = 0
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
            self.rows = _rewrite(path, self.metrics_keys, checkpoint.get(ROWS_KEY, 0) if checkpoint else 0)

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's way would lose rows if it were killed between."""
        _rewrite(Path(self.metrics_file_path), fieldnames)

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the earlier rows here."""


def _rewrite(path: Path, fieldnames: list[str], most: int | None = None) -> int:
    """Other columns for the same rows, of which ``most`` are kept and counted; a kill leaves the old file or the new."""
    with path.open(newline="") as file:
        rows = list(islice(csv.DictReader(file), most))
    with whole_file(path, "x", newline="") as file:
        writer = csv.DictWriter(file, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


class _PatientWandb(WandbLogger):
    """W&B, or its offline mode if the server does not answer."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        try:
            return super().experiment
        except wandb.Error as error:
            _warn(error)
            wandb.teardown()  # its service still holds the run's id
            self._offline = True
            self._wandb_init["settings"].mode = "offline"
            self._wandb_init["resume"] = None
            return super().experiment


def _warn(error: Exception) -> None:
    print(f"warning: no W&B ({' '.join(str(error).split())}); the run is logged offline", file=sys.stderr)


def _logged_in() -> bool:
    """Whether there is a key; the server is first asked when the run starts."""
    try:
        return wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:  # it cannot be a key
        _warn(error)
        return False


def wandb_logger(folder: Path, config: dict[str, Any]) -> WandbLogger | None:
    """Online where the person is logged in and the server answers, offline otherwise, never a prompt.

    The same W&B run after a resume. None where WANDB_MODE is ``disabled``.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    identity = folder / "wandb_id"
    if not identity.exists():
        identity.write_text(f"{folder.parent.name}-{folder.name}-{secrets.token_hex(3)}")
    offline = os.environ.get("WANDB_MODE") == "offline" or not _logged_in()
    logger = _PatientWandb(
        project="imaml_lightning",
        name=f"{folder.parent.name}/{folder.name}",
        id=identity.read_text(),
        save_dir=folder,
        offline=offline,
        resume=None if offline else "allow",
        config=config,
        settings=wandb.Settings(
            mode="offline" if offline else "online",
            silent=True,
            console="off",
            init_timeout=PATIENCE,
            finish_timeout=PATIENCE,
        ),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it; wandb warns that it no longer means anything
    return logger
