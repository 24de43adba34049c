"""Files that are whole under their final name, or not there."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "xb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write, which has another name in the same folder until it is whole: an error or a kill leaves what ``path`` held.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what checkpoints that were killed while they were written have left in ``folder``."""
    for orphan in folder.glob(".*.ckpt.*.part"):
        with contextlib.suppress(OSError):
            orphan.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
