"""The benchmark data sets by torchmeta: their archives, files, splits and examples."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np
from scipy.io import arff

from imaml_lightning.data.archives import check_members, fetch, harmless, verified
from imaml_lightning.data.base import SPLITS, Split
from imaml_lightning.data.torchmeta.class_datasets import (
    CIFARFSClassDataset,
    CUBClassDataset,
    DoubleMNISTClassDataset,
    FC100ClassDataset,
    LetterClassDataset,
    MiniImagenetClassDataset,
    PlantsMarginClassDataset,
    PlantsShapeClassDataset,
    PlantsTextureClassDataset,
    TieredImagenetClassDataset,
    TripleMNISTClassDataset,
    get_asset,
)
from imaml_lightning.errors import DataError


class _Set(NamedTuple):
    """One of torchmeta's class data sets, and the archive that it is made of."""

    classes: Any
    archive: str
    md5: str | None  # None where none is published: tables of text, which no code is run for
    url: str


def _drive(number: str) -> str:
    return f"https://drive.usercontent.google.com/download?id={number}&export=download&confirm=t"


def _on_drive(classes: Any, kind: str) -> _Set:
    return _Set(
        classes, getattr(classes, f"{kind}_filename"), getattr(classes, f"{kind}_md5"), _drive(classes.gdrive_id)
    )


def _cifar(classes: Any) -> _Set:
    return _Set(classes, f"{classes.gz_folder}.tar.gz", classes.gz_md5, classes.download_url)


def _open_ml(classes: Any) -> _Set:
    url = f"https://www.openml.org/d/{classes.open_ml_id}"
    return _Set(classes, f"{classes.folder}.arff", None, url)


SETS: dict[str, _Set] = {
    "mini_imagenet": _on_drive(MiniImagenetClassDataset, "gz"),
    "tiered_imagenet": _on_drive(TieredImagenetClassDataset, "tar"),
    "cifar_fs": _cifar(CIFARFSClassDataset),
    "fc100": _cifar(FC100ClassDataset),
    "cub": _on_drive(CUBClassDataset, "tgz"),
    "double_mnist": _on_drive(DoubleMNISTClassDataset, "zip"),
    "triple_mnist": _on_drive(TripleMNISTClassDataset, "zip"),
    "letter": _open_ml(LetterClassDataset),
    "plants_margin": _open_ml(PlantsMarginClassDataset),
    "plants_shape": _open_ml(PlantsShapeClassDataset),
    "plants_texture": _open_ml(PlantsTextureClassDataset),
}


def archive_of(name: str) -> str:
    """Which file the data set is made of, and where it is published."""
    return f"{SETS[name].archive} of {SETS[name].url}"


def files_of(name: str, root: str) -> list[Path]:
    """What torchmeta reads, in ``<root>/<its folder>``."""
    classes = SETS[name].classes
    folder = Path(root).expanduser() / classes.folder
    if getattr(classes, "subfolder", None):
        lists = [folder / classes.subfolder / classes.filename_labels.format(split) for split in SPLITS]
        return [folder / classes.filename, folder / classes.filename_fine_names, *lists]
    return [folder / pattern.format(s) for pattern in (classes.filename, classes.filename_labels) for s in SPLITS]


def missing_files(name: str, root: str) -> list[Path]:
    """Those of ``files_of`` that are not there."""
    return [file for file in files_of(name, root) if not file.is_file()]


def process(name: str, root: str, archive: Path | None) -> None:
    """Let torchmeta make its files from an archive, or from the published one, fetched first.

    It works in a folder of its own, whose files are moved in when they are whole.

    Raises:
        DataError: the archive cannot be had, is another file, or is damaged.
    """
    wanted = SETS[name]
    folder = Path(root).expanduser() / wanted.classes.folder
    if archive is None:
        archive = folder / wanted.archive
        if wanted.md5 is None and not archive.is_file():
            raise DataError(
                f"{wanted.url} is not fetched by itself: save it as ARFF and name it by --data.source.archive."
            )
        if wanted.md5 is not None and not archive.is_file():
            fetch(wanted.url, archive, wanted.md5)
    if not archive.is_file():
        raise DataError(f"{archive} does not exist: bring {archive_of(name)}.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as stage:
        try:
            if wanted.md5 is None:
                _process_arff(wanted.classes, archive, Path(stage) / wanted.classes.folder)
            else:
                _process_archive(wanted, verified(archive, wanted.md5, wanted.url), stage)
        except (OSError, ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"{archive} cannot be processed ({error}): bring {archive_of(name)} anew.") from error
        for made, place in zip(files_of(name, stage), files_of(name, root), strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, place)


def _process_archive(wanted: _Set, archive: Path, stage: str) -> None:
    check_members(archive)
    staged = Path(stage) / wanted.classes.folder
    staged.mkdir()
    (staged / wanted.archive).symlink_to(archive.resolve())
    module = sys.modules[wanted.classes.download.__module__]
    base = sys.modules[wanted.classes.__mro__[1].__module__]  # CIFAR's two sets share a base that downloads
    with contextlib.ExitStack() as stack:
        stack.enter_context(harmless())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for place in {module, base}:
            for download in ("download_file_from_google_drive", "download_url"):
                if hasattr(place, download):  # the verified archive is there already
                    stack.enter_context(mock.patch.object(place, download, return_value=None))
        wanted.classes(stage, meta_split="train", download=True)


def _process_arff(classes: Any, archive: Path, folder: Path) -> None:
    """As torchmeta does with the table that it gets from OpenML: numbers, and one column named class."""
    rows, about = arff.loadarff(archive)
    target = next(column for column in about.names() if column.lower() == "class")
    labels = np.char.decode(rows[target].astype(bytes))
    x = np.stack([rows[column].astype(float) for column in about.names() if column != target], 1)
    folder.mkdir()
    for split in SPLITS:
        kept = np.intersect1d(get_asset(classes.folder, f"{split}.json"), labels).tolist()
        (folder / classes.filename_labels.format(split)).write_text(json.dumps(kept))
        with h5py.File(folder / classes.filename.format(split), "w") as file:
            for label in kept:
                file.create_dataset(f"datasets/{label}", data=x[labels == label])


def classes_of(name: str, root: str, split: Split) -> tuple[list[str], Iterator[Iterable[Any]]]:
    """The classes of a split, by torchmeta.

    Returns:
        Names, after the category's and a slash where there is one; and for each in turn its examples, Pillow images or
        rows of features.

    Raises:
        DataError: torchmeta's files are damaged.
    """
    try:
        classes = SETS[name].classes(str(Path(root).expanduser()), meta_split=split)
        labels = classes.labels
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(name, root, error) from error
    names = ["/".join(label) if isinstance(label, list) else label for label in labels]
    if name == "tiered_imagenet":
        names = [f"{classes.data[label].attrs['label_general']}/{label}" for label in labels]

    def examples() -> Iterator[Iterable[Any]]:
        try:
            for number in range(len(labels)):
                members = classes[number]
                yield [members[i][0] for i in range(len(members))]
        except (OSError, LookupError, ValueError) as error:
            raise _damaged(name, root, error) from error

    return names, examples()


def _damaged(name: str, root: str, error: Exception) -> DataError:
    folder = files_of(name, root)[0].parent
    return DataError(f"{name} in {folder} is damaged ({error}): remove the folder and bring {archive_of(name)} anew.")
