"""Tasks and tensors given in Python: what is taken, and what would not be what it seems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imaml_lightning import MetaLearner, adapt
from imaml_lightning.data import SPLITS, ClassTensors, Tasks
from imaml_lightning.errors import DataError
from imaml_lightning.models import Conv4


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.zeros((4, 2)), np.array([0.0, 1, np.nan, 2]), "not finite"),
        (np.full((4, 2), np.inf), np.zeros(4), "not finite"),
        (np.zeros((4, 2)), np.array([0, 0, -100, 1]), "class -100: number the classes from 0"),
    ],
)
def test_given_tasks_that_would_be_taken_for_padding_are_refused(x: np.ndarray, y: np.ndarray, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Tasks({split: [(x, y)] for split in SPLITS})


def test_whole_numbers_that_do_not_say_what_is_white_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((40, 1, 4, 4), np.uint16), np.arange(40) // 4
    with pytest.raises(DataError, match="images of uint16 do not say which number is white"):
        ClassTensors(x, y, cache=str(tmp_path))
    with pytest.raises(DataError, match="uint16"):
        Tasks({split: [(x, y)] for split in SPLITS})
    with pytest.raises(DataError, match="int32"):
        adapt(
            MetaLearner(Conv4(2, size=4, filters=2, downsample="stride")),
            torch.zeros(2, 1, 4, 4, dtype=torch.int32),
            [0, 1],
        )
    ClassTensors(x.astype(np.uint8), y, cache=str(tmp_path)).prepare()
    ClassTensors(x[:, 0, 0], y, cache=str(tmp_path)).prepare()  # features, not images


def test_pictures_of_a_data_set_are_read_as_files_are(tmp_path: Path) -> None:
    red = Image.new("RGB", (3, 2), (200, 0, 0))
    kinds = [
        red,
        red.quantize(4),
        red.convert("RGBA"),
        Image.fromarray(np.full((2, 3), 514, np.uint16)),
        red.convert("1"),
    ]
    pairs = [(kinds[i % 5], i // 5) for i in range(50)]
    source = ClassTensors.of(pairs, cache=str(tmp_path))
    assert source.x.shape == (50, 3, 2, 3)
    assert source.x.dtype == np.uint8
    assert source.x[:4, :, 0, 0].tolist() == [[200, 0, 0]] * 3 + [[2, 2, 2]]
    grey = ClassTensors.of([(kinds[3], i // 5) for i in range(50)], cache=str(tmp_path))
    assert grey.x.shape == (50, 1, 2, 3)
    with pytest.raises(DataError, match="of 2 shapes"):
        ClassTensors.of([*pairs, (Image.new("L", (4, 4)), 1)], cache=str(tmp_path))


def test_given_tensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((40, 2)), np.arange(40) // 4
    for bad_x, bad_y in ((np.where(np.arange(80).reshape(40, 2) == 3, np.nan, x), y), (x, np.where(y == 3, np.nan, y))):
        with pytest.raises(DataError, match="not finite"):
            ClassTensors(bad_x, bad_y, cache=str(tmp_path))
