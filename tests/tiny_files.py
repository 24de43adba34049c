"""Files for tests of data: tables, and folders of painted pictures."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from imaml_lightning.data import ImageFolder


def write(path: Path, rows: list[dict[str, object]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def paint(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 12)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def write_classes(root: Path, count: int, pictures: int = 4, first: int = 0) -> None:
    for number in range(first, first + count):
        for i in range(pictures):
            paint(root / f"class{number:02d}" / f"{i}.png", (number, i, 0))


def folder(root: Path, **options) -> ImageFolder:
    return ImageFolder(str(root), **{"size": 8, "cache": str(root.parent / "cache"), **options})


def saved(array: np.ndarray, name: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, name, **options)
    return stream.getvalue()
