"""Omniglot by torchmeta: its folder, characters and download."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imaml_lightning.data.torchmeta.class_datasets import OmniglotClassDataset
from imaml_lightning.errors import DataError

#: What a complete folder holds.
FILES = (
    OmniglotClassDataset.filename,
    *(f"{part}_labels.json" for part in ("train", "test", "vinyals_train", "vinyals_val", "vinyals_test")),
)
_ZIPS = tuple(f"{name}.zip" for name in OmniglotClassDataset.zips_md5)


def omniglot_folder(root: str) -> Path:
    """Where torchmeta looks for Omniglot: ``<root>/omniglot``."""
    return Path(root).expanduser() / OmniglotClassDataset.folder


def omniglot_characters(root: str, vinyals: bool, split: str) -> tuple[list[str], Iterator[np.ndarray]]:
    """The characters of one of torchmeta's splits.

    Args:
        root: folder that holds ``omniglot``.
        vinyals: the Vinyals lists (train, val, test), or the original background and evaluation sets
            (train, test).
        split: the list.

    Returns:
        Names such as ``images_background/Greek/character01``, and for each in turn its drawings, uint8
        ``[image, 105, 105]``, ink = 255.
    """
    classes = OmniglotClassDataset(root, meta_split=split, use_vinyals_split=vinyals)
    names = ["/".join(label) for label in classes.labels]

    def drawings() -> Iterator[np.ndarray]:
        try:
            for number in range(len(classes)):
                yield np.asarray(classes[number].data[:])
        finally:
            classes.close()

    return names, drawings()


def download_omniglot(root: str) -> None:
    """Fetch and process Omniglot by torchmeta, beside the folder, and move it in when it is whole.

    torchmeta processes in place, and a second attempt trips over the remains of a first one cut short.
    Zip files that are there already are used, so this also works without a network.

    Raises:
        DataError: no network, a damaged zip file, or no room.
    """
    folder = omniglot_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".omniglot-") as stage:
        staged = omniglot_folder(stage)
        staged.mkdir()
        try:
            for name in _ZIPS:
                if (folder / name).is_file():
                    # torchmeta does not unpack a zip file that it did not fetch itself.
                    with zipfile.ZipFile(folder / name) as archive:
                        archive.extractall(staged)
                    shutil.copy(folder / name, staged / name)
            OmniglotClassDataset(stage, meta_split="train", download=True)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"Cannot fetch Omniglot ({error}); without a network, put {' and '.join(_ZIPS)} from "
                f"{OmniglotClassDataset.download_url_prefix.removesuffix('/raw/master/python')} (folder python) "
                f"into {folder} and run again with --data.source.download true."
            ) from error
        for name in (*_ZIPS, *FILES):
            os.replace(staged / name, folder / name)
