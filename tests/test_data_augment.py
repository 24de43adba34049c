"""Augmentation of a batch against one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import Tiny

from imaml_lightning.data import Augment, EpisodeDataModule
from imaml_lightning.data.base import SPLITS
from imaml_lightning.errors import UsageError

CHANGES = {"rotation": 40.0, "scale": 0.2, "shear": 0.3, "shift": 2.0, "elastic": 1.5}


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


def drawing(paper: float = 0.0) -> np.ndarray:
    """A blurred letter L of 12 x 16 pixels on ``paper``, away from the border."""
    image = np.full((12, 16), paper, np.float32)
    image[3:9, 6], image[8, 6:11] = 1 - paper, 1 - paper
    return np.round(255 * image) / 255


def affine(changes: dict[str, float], numbers: list[float], shape: tuple[int, int]) -> tuple[float, ...]:
    """Pillow's six coefficients of the inverse change, from its matrices one after the other in homogeneous form."""
    angle, tall, wide, slant, down, across = (2 * n - 1 for n in numbers)
    a = math.radians(changes.get("rotation", 0) * angle)
    middle = np.array([[1, 0, shape[1] / 2], [0, 1, shape[0] / 2], [0, 0, 1]])  # (across, down, 1)
    scale = np.diag([1 + changes.get("scale", 0) * wide, 1 + changes.get("scale", 0) * tall, 1])
    shear = np.array([[1, changes.get("shear", 0) * slant, 0], [0, 1, 0], [0, 0, 1]])
    turn = np.array([[math.cos(a), math.sin(a), 0], [-math.sin(a), math.cos(a), 0], [0, 0, 1]])
    move = np.array([[1, 0, changes.get("shift", 0) * across], [0, 1, changes.get("shift", 0) * down], [0, 0, 1]])
    forward = middle @ move @ turn @ shear @ scale @ np.linalg.inv(middle)
    return tuple(np.linalg.inv(forward)[:2].flatten().tolist())


@pytest.mark.parametrize("names", [["rotation"], ["scale"], ["shear"], ["shift"], list(CHANGES)[:4]])
@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_affine_changes_are_those_of_pillow(names: list[str], paper: float) -> None:
    changes = {name: CHANGES[name] for name in names}
    g = torch.Generator().manual_seed(1)
    numbers = torch.rand(2, 4, 12, generator=g)
    image = drawing(paper)
    x = torch.from_numpy(image).expand(2, 4, 1, 12, 16)
    result = Augment(flip=False, **changes)(x, numbers)
    assert not torch.equal(result, x)
    for task in range(2):
        for i in range(4):
            coefficients = affine(changes, numbers[task, i, 6:].tolist(), (12, 16))
            size, how = (16, 12), Image.Resampling.BILINEAR
            theirs = Image.fromarray(image).transform(size, Image.Transform.AFFINE, coefficients, how, fillcolor=paper)
            np.testing.assert_allclose(result[task, i, 0].numpy(), np.asarray(theirs), atol=1e-4)


def test_elastic_changes_move_nodes_as_asked() -> None:
    # A picture whose value is its own column tells by how much each of its pixels was moved across.
    column = torch.arange(31.0).expand(31, 31)
    x = torch.stack([column.T, column])[None, None]
    numbers = torch.full((1, 1, 38), 0.5)  # every node stays, but for these two
    nodes = numbers[0, 0, 6:].view(2, 4, 4)
    nodes[0, 1, 2], nodes[1, 2, 1] = 1.0, 0.25
    moved = (Augment(flip=False, elastic=3.0)(x, numbers) - x)[0, 0]
    assert moved[0, 10, 20].item() == pytest.approx(3.0, abs=1e-4)
    assert moved[1, 20, 10].item() == pytest.approx(-1.5, abs=1e-4)
    for place in ((10, 10), (20, 20), (10, 20), (20, 10)):
        assert moved[1, place[0], place[1]].item() == pytest.approx(-1.5 if place == (20, 10) else 0.0, abs=1e-4)
    steps = moved[0, 5:15, 15:25].diff(dim=0).abs()
    assert steps.max() < 3.0 / 5  # smoothly: no pixel is moved by much more than its neighbour


def test_what_comes_into_view_is_paper() -> None:
    x = torch.stack([torch.full((2, 8, 8), 0.25), torch.full((2, 8, 8), 0.75)])[None]
    x[0, :, :, 3:5, 3:5] = 0.5
    x[..., 0, 3] = 1.0  # a stroke that touches the border
    result = Augment(flip=False, shift=7.0)(x, torch.full((1, 2, 12), 1.0))
    assert torch.equal(result[0, 0, :, :-1, :-1].unique(), torch.tensor([0.25]))
    assert torch.equal(result[0, 1, :, :-1, :-1].unique(), torch.tensor([0.75]))


def augmented(folder: str, workers: int = 0, tasks: int = 6, **changes: float) -> EpisodeDataModule:
    data = EpisodeDataModule(
        Tiny(folder), 3, 2, 2, tasks, train_batches=4, workers=workers, augment=Augment(flip=False, **changes)
    )
    data.prepare_data()
    data.setup()
    return data


def test_an_episode_is_changed_alike_by_any_worker_and_in_any_batch(tmp_path) -> None:
    data, helped = augmented(str(tmp_path), **CHANGES), augmented(str(tmp_path), workers=2, **CHANGES)
    wholes = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    others = [helped.on_after_batch_transfer(batch, 0) for batch in helped.train_dataloader()]
    for number, (whole, other) in enumerate(zip(wholes, others, strict=True)):
        assert torch.equal(whole.support.x, other.support.x)
        for task in (0, 5):
            alone = data.episode("train", 6 * number + task)
            torch.testing.assert_close(alone.query.x[0], whole.query.x[task], rtol=0, atol=1e-5)


def test_evaluation_is_not_augmented_and_numbers_of_old_changes_stay(tmp_path) -> None:
    plain, changed = augmented(str(tmp_path)), augmented(str(tmp_path), **CHANGES)
    for split in SPLITS:
        same = torch.equal(plain.episode(split, 0).support.x, changed.episode(split, 0).support.x)
        assert same == (split != "train")
    draws = [Augment(**kind).draw(np.random.default_rng(3), 5) for kind in ({}, CHANGES)]
    assert draws[1].shape == (5, 6 + 6 + 32)
    assert torch.equal(draws[0], draws[1][:, :6])


@pytest.mark.parametrize("options", [{"crop": -1}, {"colour": 1.5}])
def test_options_without_sense(options) -> None:
    with pytest.raises(UsageError, match=r"--data\.augment\.crop must be at least 0 and colour from 0 to 1"):
        Augment(**options)


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_changes_without_sense_are_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"--data\.augment\.{name} must be .*0.*, but is {value}"):
        Augment(**{name: value})
