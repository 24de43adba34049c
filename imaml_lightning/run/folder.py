"""A run's folder: what lies where, and who writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from imaml_lightning.errors import UsageError
from imaml_lightning.learner.whole_file import sweep
from imaml_lightning.run.callbacks import KeepLast, Pictures, RecordRun, Waiting
from imaml_lightning.run.loggers import AppendingCSV, wandb_logger
from imaml_lightning.run.signals import Signals

#: Ranks that the first one starts learn the folder from this variable. Others (torchrun, SLURM) do not know it, and write nothing.
_FOLDER_VARIABLE = "IMAML_LIGHTNING_RUN"


class RunFolder:
    """``<output>/<name>/<number>/``: config.yaml, metrics.csv, best.ckpt, last.ckpt, previous.ckpt, wandb/ and pictures.

    Args:
        path: of a run that goes on; see ``new`` for another one.
        config: the whole configuration, as plain types; written to config.yaml at once.

    Raises:
        UsageError: if the folder cannot be written.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        if _first_rank():
            try:
                sweep(path)
                (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            except OSError as error:
                raise UsageError(f"cannot write to {path} ({error.strerror}): choose another --output") from error

    @classmethod
    def new(cls, output: str, name: str, config: dict[str, Any]) -> RunFolder:
        """Make the next numbered folder (one process does; the ranks it starts share it).

        Raises:
            UsageError: if it cannot be made.
        """
        parent = Path(output) / name
        if not _first_rank():
            return cls(Path(os.environ.get(_FOLDER_VARIABLE, parent)), config)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=-1)
            while True:
                try:
                    (parent / f"{number:03d}").mkdir()
                    break
                except FileExistsError:  # another process took the number
                    number += 1
        except OSError as error:
            raise UsageError(f"cannot make a folder in {parent} ({error.strerror}): choose another --output") from error
        os.environ[_FOLDER_VARIABLE] = str(parent / f"{number:03d}")
        return cls(parent / f"{number:03d}", config)

    def loggers(self, checkpoint: dict[str, Any] | None) -> list[Logger]:
        """The CSV, from where ``checkpoint`` was taken, and Weights & Biases beside it; only the first rank writes."""
        if not _first_rank():
            return []
        return [*filter(None, (AppendingCSV(self.path, checkpoint), wandb_logger(self.path, self.config)))]

    def callbacks(self, monitor: str, mode: str, every: int, signals: Signals) -> Iterator[Callback]:
        """What draws the pictures and keeps the checkpoints: the best by ``monitor``, and the last ``every`` meta-steps."""
        yield Pictures(self.path)
        yield RecordRun(self.config)
        yield Waiting()
        yield ModelCheckpoint(
            self.path,
            "best",
            monitor,
            mode=mode,
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # a run that goes on from such a one would count a meta-step too many
        )
        yield KeepLast(self.path, every, signals)

    def best(self) -> Path:
        """The best checkpoint, or the last if there was no validation to choose by."""
        best = self.path / "best.ckpt"
        return best if best.exists() else self.path / "last.ckpt"


def _first_rank() -> bool:
    """Of all machines, whoever started the ranks: Lightning reads it from the launcher's variables."""
    return getattr(rank_zero_only, "rank", 0) == 0
