"""Benchmark: the class data sets of the few-shot literature, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS
from imaml_lightning.data.class_source import ClassSource, progress
from imaml_lightning.errors import DataError, UsageError


class Published(NamedTuple):
    """What is known of a data set."""

    shape: tuple[int, ...]  # of an example, (channel, height, width) or (feature,)
    classes: tuple[int, int, int]  # of train, val and test
    examples: int | None  # in all splits together; None: not compared


SETS = {
    "mini_imagenet": Published((3, 84, 84), (64, 16, 20), 60_000),
    "tiered_imagenet": Published((3, 84, 84), (351, 97, 160), 779_165),
    "cifar_fs": Published((3, 32, 32), (64, 16, 20), 60_000),
    "fc100": Published((3, 32, 32), (60, 20, 20), 60_000),
    "cub": Published((3, 84, 84), (100, 50, 50), 11_788),
    "double_mnist": Published((1, 64, 64), (64, 16, 20), 100_000),
    "triple_mnist": Published((1, 84, 84), (640, 160, 200), 1_000_000),
    "letter": Published((16,), (15, 5, 6), 20_000),
    "plants_margin": Published((64,), (70, 15, 15), 1_600),
    "plants_shape": Published((64,), (70, 15, 15), 1_600),
    "plants_texture": Published((64,), (70, 15, 15), None),
}


class Benchmark(ClassSource):
    """A class data set of torchmeta, with the splits that torchmeta keeps.

    =============== ====================== ========================================================================
    name            classes                what
    =============== ====================== ========================================================================
    mini_imagenet   64 / 16 / 20           600 photographs each, 84 x 84 (Ravi and Larochelle's split, 2017)
    tiered_imagenet 351 / 97 / 160         779,165 photographs, 84 x 84; 20 / 6 / 8 categories (Ren et al. 2018)
    cifar_fs        64 / 16 / 20           600 photographs each, 32 x 32 (Bertinetto et al. 2019)
    fc100           60 / 20 / 20           600 photographs each, 32 x 32; 12 / 4 / 4 superclasses (Oreshkin et al. 2018)
    cub             100 / 50 / 50          11,788 photographs of birds, here 84 x 84 (Chen et al. 2019)
    double_mnist    64 / 16 / 20           1,000 pictures each of two digits, 64 x 64, grey (Sun 2019)
    triple_mnist    640 / 160 / 200        1,000 pictures each of three digits, 84 x 84, grey (Sun 2019)
    letter          15 / 5 / 6             20,000 rows of 16 features of printed letters (Frey and Slate 1991)
    plants_margin   70 / 15 / 15           16 rows each of 64 features of leaves; also plants_shape, plants_texture
    =============== ====================== ========================================================================

    Features of tables are brought to mean 0 and deviation 1 by those of the training rows. Groups are the categories or
    superclasses, where there are any. Omniglot has a class of its own, ``Omniglot``.

    Args:
        name: of the data set, as above.
        root: folder that holds (or gets) torchmeta's folder of the data set.
        download: fetch the archive if the data set is not there.
        archive: the archive as published (a .arff file of OpenML for tables), brought by other means.
        size: height and width to which pictures are resized; None keeps those above.
        within_groups: draw the classes of a task from one group.
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    def __init__(
        self,
        name: Literal[
            "mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100", "cub", "double_mnist", "triple_mnist",
            "letter", "plants_margin", "plants_shape", "plants_texture",
        ],
        root: str = "data",
        download: bool = False,
        archive: str | None = None,
        size: int | None = None,
        within_groups: bool = False,
        cache: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(cache, within_groups)
        if name not in SETS:
            raise UsageError(f"--data.source.name is one of {', '.join(SETS)}, but is {name!r}.")
        self.name, self.root, self.download, self.archive = name, root, download, archive
        self.published = SETS[name]
        self.shape = self.published.shape
        if size is not None:
            if size < 1 or len(self.shape) != 3:
                raise UsageError(f"--data.source.size is that of pictures, at least 1, but is {size} for {name}.")
            self.shape = (self.shape[0], size, size)

    def prepare(self) -> None:
        from imaml_lightning.data.torchmeta import adapter

        if adapter.missing_files(self.name, self.root) and (self.archive or self.download):
            adapter.process(self.name, self.root, Path(self.archive).expanduser() if self.archive else None)
        super().prepare()

    def recipe(self) -> Mapping[str, object]:
        from imaml_lightning.data.torchmeta import adapter

        if missing := adapter.missing_files(self.name, self.root):
            raise DataError(
                f"{self.name} is not complete in {missing[0].parent} ({missing[0].name} is missing): name the file "
                f"{adapter.archive_of(self.name)} by --data.source.archive, or let it be fetched by "
                "--data.source.download true."
            )
        files = [file.stat() for file in adapter.files_of(self.name, self.root)]
        return {
            "source": self.name,
            "version": 1,
            "shape": self.shape,
            # Gigabytes are not read at every start: sizes and times stand for the content.
            "files": [[state.st_size, state.st_mtime_ns] for state in files],
        }

    def reading(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "ink": False} if len(self.shape) == 3 else {}

    def build(self) -> Iterator[BankClass]:
        from imaml_lightning.data.torchmeta import adapter

        mean: np.ndarray | float = 0.0
        scale: np.ndarray | float = 1.0
        total = 0
        for split, published in zip(SPLITS, self.published.classes, strict=True):
            names, classes = adapter.classes_of(self.name, self.root, split)
            if len(names) != published:
                raise DataError(
                    f"{self.name} in {self.root} has {len(names)} {split} classes and not the published {published}: remove "
                    f"its folder and bring {adapter.archive_of(self.name)} anew."
                )
            if len(self.shape) == 1 and split == "train":
                rows = np.concatenate(
                    [np.stack(list(rows)) for rows in adapter.classes_of(self.name, self.root, split)[1]]
                )
                mean, scale = rows.mean(0), np.where(rows.std(0) > 0, rows.std(0), 1)
            bar = progress(classes, f"Reading {self.name}, {split} classes", len(names))
            for name, examples in zip(names, bar, strict=True):
                if len(self.shape) == 3:
                    array = np.stack([self._picture(one) for one in examples])
                else:
                    array = ((np.stack(list(examples)) - mean) / scale).astype(np.float32)
                total += len(array)
                yield BankClass(split, name, array, name.rpartition("/")[0])
        if self.published.examples not in (None, total):
            raise DataError(
                f"{self.name} in {self.root} has {total:,} examples and not the published {self.published.examples:,}: "
                f"remove its folder and bring {adapter.archive_of(self.name)} anew."
            )

    def _picture(self, image: Image.Image) -> np.ndarray:
        channels, height, width = self.shape
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)
