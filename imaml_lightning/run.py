"""A run's folder: what lies where, the two logs that are written to it, and how a checkpoint is found and read again."""

from __future__ import annotations

import argparse
import csv
import os
import secrets
from pathlib import Path
from typing import Any

import torch
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from imaml_lightning.errors import UsageError

#: Key under which a checkpoint holds the configuration that made it, as plain types.
CONFIG_KEY = "imaml_lightning_config"

#: Ranks that the first one starts learn the folder from this variable.
_FOLDER_VARIABLE = "IMAML_LIGHTNING_RUN"


class RunFolder:
    """``<output>/<name>/<number>/``: config.yaml, metrics.csv, best.ckpt, last.ckpt, wandb/ and pictures of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def new(cls, output: str, name: str) -> RunFolder:
        """Make the next numbered folder (one process does; the ranks it starts share it).

        Raises:
            UsageError: if it cannot be made.
        """
        parent = Path(output) / name
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # the first process made it; ranks above 0 write nothing
            return cls(Path(os.environ.get(_FOLDER_VARIABLE, parent)))
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
        return cls(parent / f"{number:03d}")

    def loggers(self, step: int, config: dict[str, Any]) -> list[CSVLogger | WandbLogger]:
        """The CSV, its rows after ``step`` dropped (a resumed run writes them again), and Weights & Biases beside it."""
        return [_AppendingCSV(self.path, step), self._wandb(config)]

    def _wandb(self, config: dict[str, Any]) -> WandbLogger:
        """Online where the person is logged in, offline otherwise, never a prompt; the same W&B run after a resume."""
        identity = self.path / "wandb_id"
        if not identity.exists():
            identity.write_text(f"{self.path.parent.name}-{self.path.name}-{secrets.token_hex(3)}")
        mode = os.environ.get("WANDB_MODE", "")
        offline = mode in ("offline", "disabled") or not wandb.login(prompt=False)
        logger = WandbLogger(
            project="imaml_lightning",
            name=f"{self.path.parent.name}/{self.path.name}",
            id=identity.read_text(),
            save_dir=self.path,
            offline=offline,
            resume=None if offline else "allow",
            config=config,
            settings=wandb.Settings(mode="offline" if offline else "online", silent=True, console="off"),
        )
        logger._wandb_init.pop("anonymous", None)  # Lightning passes it; wandb warns that it no longer means anything
        return logger


class _AppendingCSV(CSVLogger):
    """Lightning's CSV logger, but a resumed run continues the file, and every row is on disk at once."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._step = step

    @property
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, self._step)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def __init__(self, folder: str, step: int) -> None:
        super().__init__(folder)
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                rows = csv.DictReader(file)
                self.metrics = [{k: v for k, v in row.items() if v} for row in rows if int(row["step"]) < step]
            path.unlink()
            self.save()

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the earlier rows here."""


def peek_options(args: list[str]) -> dict[str, str]:
    """``ckpt_path``, ``name`` and ``output`` of a command line and its configuration files, before all else is parsed.

    Raises:
        UsageError: if a file is not YAML (jsonargparse's own complaint would not name it).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    for name in ("ckpt_path", "name", "output"):
        parser.add_argument(f"--{name}")
    options, _ = parser.parse_known_args(args)
    found: dict[str, str] = {}
    for path in (path for path in map(Path, options.config) if path.is_file()):
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML ({' '.join(str(error).split())}): correct it there") from error
        if not isinstance(content, dict):
            raise UsageError(f"{path} holds no options: write some, as --print_config shows them")
        found |= content
    found |= {name: value for name, value in vars(options).items() if value is not None}
    return {name: found[name] for name in ("ckpt_path", "name", "output") if found.get(name) is not None}


def find_checkpoint(ckpt_path: str, output: str, name: str) -> Path:
    """The file that ``--ckpt_path`` means: a path, or ``last`` or ``best`` of the newest run of this name that has one.

    Raises:
        UsageError: if there is none.
    """
    if ckpt_path not in ("last", "best"):
        path = Path(ckpt_path)
        if not path.is_file():
            raise UsageError(f"checkpoint {ckpt_path} does not exist: give the path of a .ckpt file, or last, or best")
        return path
    found = [p for p in (Path(output) / name).glob(f"*/{ckpt_path}.ckpt") if p.parent.name.isdigit()]
    if not found:
        raise UsageError(
            f"no {ckpt_path}.ckpt in {Path(output) / name}/*/: give --name and --output of the run, or the checkpoint's path"
        )
    return max(found, key=lambda path: int(path.parent.name))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The plain types and tensors of a checkpoint; no code in it is executed.

    Raises:
        UsageError: if the file is truncated, or something other than a checkpoint of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"], checkpoint[CONFIG_KEY]
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} is truncated or not a checkpoint of imaml_lightning: use another one"
        ) from error
    return checkpoint
