"""Augmentation of a batch against one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imaml_lightning.data import Augment
from imaml_lightning.errors import UsageError


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(3, 5, 3, 6, 7, generator=g), torch.rand(3, 5, 6, generator=g)


def test_flips_and_crops_are_those_of_numpy() -> None:
    x, numbers = batch()
    result = Augment(flip=True, crop=2)(x, numbers)
    flips = 0
    for task in range(3):
        for i in range(5):
            image, (flip, down, across, *_) = x[task, i].numpy(), numbers[task, i].tolist()
            padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
            top, left = int(down * 5), int(across * 5)
            cut = padded[:, top : top + 6, left : left + 7]
            flips += flip < 0.5
            np.testing.assert_array_equal(result[task, i].numpy(), cut[:, :, ::-1] if flip < 0.5 else cut)
    assert 0 < flips < 15


def test_colours() -> None:
    x, numbers = batch()
    assert torch.equal(Augment(flip=False)(x, numbers), x)
    result = Augment(flip=False, colour=0.5)(x, numbers)
    image = x[1, 2].double() * (0.5 + numbers[1, 2, 3])
    image = image.mean() + (image - image.mean()) * (0.5 + numbers[1, 2, 4])
    grey = image.mean(0, keepdim=True)
    image = (grey + (image - grey) * (0.5 + numbers[1, 2, 5])).clamp(0, 1)
    torch.testing.assert_close(result[1, 2], image.float())


@pytest.mark.parametrize("options", [{"crop": -1}, {"colour": 1.5}])
def test_options_without_sense(options) -> None:
    with pytest.raises(UsageError, match=r"--data\.augment\.crop must be at least 0 and colour from 0 to 1"):
        Augment(**options)
