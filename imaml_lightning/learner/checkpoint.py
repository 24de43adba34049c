"""Checkpoints: written whole or not at all, found again, and read without executing anything in them."""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from imaml_lightning.errors import DivergedError, UsageError
from imaml_lightning.learner.whole_file import whole_file

#: Key under which a checkpoint holds the configuration that made it, as plain types.
CONFIG_KEY = "imaml_lightning_config"
#: Key under which it holds the number of rows that metrics.csv had.
ROWS_KEY = "imaml_lightning_rows"
#: Key under which it holds the row of its own meta-step, if metrics.csv does not have it yet.
PENDING_KEY = "imaml_lightning_pending_row"
#: Key under which it holds θ where its ``state_dict`` is an average over meta-steps.
CURRENT_KEY = "current_model_state"
#: Packages whose classes a configuration may name; nothing of others is even imported, unless the person says so.
TRUSTED = ("imaml_lightning", "torch.nn", "torch.optim", "lightning.pytorch", "lightning.fabric")
_PACKAGE = "imaml_lightning"
#: Options whose values have dots and name no class: patterns of parameters, models of timm, a layer, a file.
_NO_CLASSES = ("adapt", "name", "without", "weights")
#: Keys under which a checkpoint names classes: ours, and Lightning's for a learner's arguments.
_NAMING_CLASSES = (CONFIG_KEY, "hyper_parameters")


class WholeCheckpoints(CheckpointIO):
    """Files that are whole under their final name whatever happens, and that hold finite numbers only.

    Args:
        callbacks: whether the state of callbacks is read. An evaluation lacks the callbacks of training, and Lightning would
            miss each of them.
    """

    def __init__(self, callbacks: bool = True) -> None:
        self.callbacks = callbacks

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write under a temporary name in the same folder, then rename.

        Raises:
            DivergedError: a weight or the optimizer's state is not finite.
            OSError: the disk is full or the folder cannot be written; what ``path`` held is as it was.
        """
        state = ("state_dict", CURRENT_KEY, "optimizer_states")
        for name, tensor in _tensors({key: checkpoint.get(key) for key in state}):
            if not tensor.isfinite().all():
                raise DivergedError(
                    f"{path} was not written, since {name} is not finite: "
                    "go on from the checkpoint before it with lower inner and outer learning rates"
                )
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch turns an error of the disk into one of its own
            raise OSError(f"cannot write the checkpoint {path}: make room there, then go on from it") from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: Any = True) -> dict[str, Any]:
        """What ``path`` holds, whatever Lightning asks for: plain types and tensors only."""
        checkpoint = read_checkpoint(path, map_location)
        return checkpoint if self.callbacks else {key: value for key, value in checkpoint.items() if key != "callbacks"}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The plain types and tensors of a checkpoint, its checksums verified; no code in it is executed.

    Classes that have moved within the package since it was written are named by where they are today.

    Raises:
        UsageError: if the file is missing, damaged, or something other than a checkpoint of ours.
    """
    if not Path(path).is_file():
        raise UsageError(f"checkpoint {path} does not exist: give the path of a .ckpt file, or last, or best")
    try:
        # torch itself does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing; what is compressed is of others, and could unpack to any size.
            damaged = any(part.compress_type for part in archive.infolist()) or archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(damaged)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        checkpoint["state_dict"]
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} is damaged or not a checkpoint of imaml_lightning: use another one"
        ) from error
    return {key: _today(value) if key in _NAMING_CLASSES else value for key, value in checkpoint.items()}


def class_today(path: str) -> str:
    """``path``, or where the class of this name is today, if an older version of the package had it at ``path``."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] != _PACKAGE or name in vars(sys.modules.get(module, object)):
        return path
    rooms = [room for room in sys.modules if room.partition(".")[0] == _PACKAGE]
    homes = [room for room in rooms if name in getattr(sys.modules[room], "__all__", ())]
    home = min(homes, key=lambda room: (not module.startswith(room), room), default=module)
    return f"{home}.{name}"


def _today(options: Any) -> Any:
    """Options with every class path in them as of today."""
    if isinstance(options, dict):
        return {key: _today(option) for key, option in options.items()}
    if isinstance(options, (list, tuple)):
        return type(options)(_today(option) for option in options)
    return class_today(options) if isinstance(options, str) else options


def check_trusted(options: Any, path: str | Path, trust: Sequence[str] = ()) -> None:
    """Refuse options of a checkpoint that name a class outside the packages of ``TRUSTED`` and ``trust``.

    Raises:
        UsageError: naming the class.
    """
    if isinstance(options, dict):
        options = [value for name, value in options.items() if name not in _NO_CLASSES]
    if isinstance(options, (list, tuple)):
        for option in options:
            check_trusted(option, path, trust)
    elif isinstance(options, str) and "." in options and all(part.isidentifier() for part in options.split(".")):
        allowed = (*TRUSTED, *trust)
        if not any(options == package or options.startswith(f"{package}.") for package in allowed):
            raise UsageError(
                f"checkpoint {path} names {options}, which is not imported: name its package in trust=[…] if you trust it"
            )


def named_classes(options: Any) -> list[str]:
    """Every ``class_path`` in nested options."""
    if isinstance(options, dict):
        own = [options["class_path"]] if isinstance(options.get("class_path"), str) else []
        return own + [name for value in options.values() for name in named_classes(value)]
    return [name for value in options for name in named_classes(value)] if isinstance(options, (list, tuple)) else []


def find_checkpoint(ckpt_path: str, output: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The file that ``--ckpt_path`` means, and its content.

    A path means that file alone; ``best`` or ``last`` that of the newest run of this name that has one. In place of a
    ``last`` that is damaged comes the newest sound checkpoint of the same run, with a warning.

    Raises:
        UsageError: if there is none, or it is damaged.
    """
    if ckpt_path not in ("last", "best"):
        return Path(ckpt_path), read_checkpoint(ckpt_path)
    found = [p for p in (Path(output) / name).glob(f"*/{ckpt_path}.ckpt") if p.parent.name.isdigit()]
    if not found:
        raise UsageError(
            f"no {ckpt_path}.ckpt in {Path(output) / name}/*/: give --name and --output of the run, or the checkpoint's path"
        )
    newest = max(found, key=lambda path: int(path.parent.name))
    try:
        return newest, read_checkpoint(newest)
    except UsageError as error:
        if ckpt_path == "last":
            others = [path for path in newest.parent.glob("*.ckpt") if path != newest]
            for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
                with contextlib.suppress(UsageError):
                    checkpoint = read_checkpoint(other)
                    print(f"warning: {newest} is damaged; going on from {other}", file=sys.stderr)
                    return other, checkpoint
        raise error


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested containers, with the keys that lead to it."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
