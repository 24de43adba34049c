"""A folder of pictures: what is read from it, how it is divided, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_files import folder, paint, write_classes

from imaml_lightning.data import SPLITS, ClassBank, EpisodeDataModule
from imaml_lightning.data.images import read_image
from imaml_lightning.errors import UsageError


def classes_of(bank: ClassBank, split: str) -> set[str]:
    return {bank.names[i] for i in bank.splits[split]}


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for first, split in enumerate(("test", "train", "val")):
        write_classes(tmp_path / "root" / split, count=first + 2, first=10 * first)
    bank = folder(tmp_path / "root").bank
    assert [len(bank.splits[split]) for split in SPLITS] == [3, 4, 2]
    assert classes_of(bank, "test") == {"class00", "class01"}
    assert bank.of_class(0)[2, :, 0, 0].tolist() == [10, 2, 0]  # class10, picture 2
    assert bank.examples.shape == (9 * 4, 3, 8, 8)


def test_classes_are_divided_by_the_seed(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=20)
    banks = [folder(tmp_path / "root", split_seed=seed).bank for seed in (0, 0, 1)]
    assert [len(banks[0].splits[split]) for split in SPLITS] == [12, 4, 4]
    assert banks[0].names == banks[1].names != banks[2].names
    assert len(set(banks[0].names)) == 20


def test_a_training_class_turned_is_another_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=5)
    corner = Image.new("RGB", (8, 8))
    corner.paste((255, 0, 0), (0, 0, 4, 4))  # above left
    for name in ("class00", "class01", "class02", "class03", "class04"):
        corner.save(tmp_path / "root" / name / "0.png")
    bank = folder(tmp_path / "root", rotations=True).bank
    assert [len(bank.splits[split]) for split in SPLITS] == [12, 1, 1]
    reds = {tuple(np.argwhere(bank.of_class(i)[0, 0, ::7, ::7] > 200)[0].tolist()) for i in range(4)}
    assert reds == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert bank.names[1] == f"{bank.names[0]} 90°"


def test_groups_stay_together_and_tasks_within_them(tmp_path: Path) -> None:
    for site in range(6):
        write_classes(tmp_path / "root" / f"site{site}", count=3 + site % 2, first=10 * site)
    source = folder(tmp_path / "root", grouped=True, within_groups=True)
    bank = source.bank
    sites = {s: {bank.groups[i] for i in bank.splits[s]} for s in SPLITS}
    assert sum(map(len, sites.values())) == len(set.union(*sites.values())) == 6
    source.check("train", 3, 1, 3)
    episode = source.sample("train", [np.random.default_rng(i) for i in range(40)], 3, 1, 2)
    red = episode.support.x[:, :, 0, 0, 0] // 10  # the site
    assert (red == red[:, :1]).all()
    assert len(set(red[:, 0].tolist())) == len(sites["train"])
    with pytest.raises(UsageError, match=r"--data\.way 5 asks for more classes than an alphabet or other group"):
        source.check("train", 5, 1, 3)


def test_classes_of_unequal_size(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=9, pictures=3)
    write_classes(tmp_path / "root", count=1, pictures=130, first=9)
    source = folder(tmp_path / "root", fractions=(0.8, 0.1, 0.1))
    split = next(s for s in SPLITS if "class09" in classes_of(source.bank, s))
    way = len(source.bank.splits[split])
    seen = set()
    for seed in range(60):
        x = source.sample(split, [np.random.default_rng(seed)], way, 1, 2).query.x[0, :, :2, 0, 0]
        assert len({tuple(row) for row in x.tolist()}) == 2 * way  # no picture twice
        seen |= {int(i) for number, i in x.tolist() if number == 9}
    assert len(seen) > 70
    with pytest.raises(UsageError, match=r"--data.shot 2 plus 2 query examples .* 3 that class class0\d"):
        source.check("train", 2, 2, 2)


def test_changed_pictures_are_read_anew(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=5)
    before = folder(tmp_path / "root").bank
    paint(tmp_path / "root" / "class00" / "new.png", (200, 0, 0))
    after = folder(tmp_path / "root").bank
    assert before.path != after.path
    assert len(after.examples) == len(before.examples) + 1


def test_pictures_as_a_camera_or_a_scanner_leaves_them(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20), "black")
    wide.paste("white", (10, 0, 30, 20))  # the middle square is white
    wide.save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", (1, 8, 8)).min() > 200
    assert read_image(tmp_path / "wide.png", (1, 8, 8), ink=True).max() < 55

    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))  # the top is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise: the top comes to the right
    half.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    turned = read_image(tmp_path / "turned.jpg", (3, 8, 8))
    assert turned.shape == (3, 8, 8)
    assert turned[:, :, 6:].min() > 200 > 60 > turned[:, :, :2].max()

    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", (3, 8, 8)).min() == 255


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, "is not a folder: let --data.source.root"),
        (lambda root: root.mkdir(), "No pictures in .*/class/\\*.png"),
        (lambda root: write_classes(root / "train", 2), "has train but no val: make the folder .*val"),
        (lambda root: [write_classes(root, 5), (root / "class00" / "0.png").write_bytes(b"x")], "0.png cannot be read"),
        (
            lambda root: [
                write_classes(root, 5),
                (root / "class01" / "1.png").write_bytes((root / "class01" / "1.png").read_bytes()[:50]),
            ],
            "1.png cannot be read",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make, sentence: str) -> None:
    make(tmp_path / "root")
    with pytest.raises(UsageError, match=sentence):
        folder(tmp_path / "root").prepare()
    assert not list(tmp_path.glob("cache/*"))


def test_options_without_sense(tmp_path: Path) -> None:
    for options, sentence in (
        ({"size": 0}, "size must be at least 1"),
        ({"within_groups": True}, "grouped true"),
        ({"fractions": (0.5, 0.5, 0.5)}, "sum 1"),
        ({"split_seed": -1}, "split_seed"),
        ({"white": 0.0}, "white must be a positive number"),
        ({"min_examples": 0}, "min_examples must be at least 1"),
    ):
        with pytest.raises(UsageError, match=sentence):
            folder(tmp_path, **options)


def test_augmented_and_on_device_episodes_are_the_same_for_every_batch_size(tmp_path: Path) -> None:
    from imaml_lightning.data import Augment

    write_classes(tmp_path / "root", count=20)
    source = folder(tmp_path / "root")

    def episode(tasks: int, number: int, **options):
        data = EpisodeDataModule(source, way=3, shot=1, query=2, tasks=tasks, train_batches=4, **options)
        return data.episode("train", number), data

    plain, _ = episode(4, 5)
    resident, _ = episode(4, 5, on_device=True)
    assert (plain.support.x == resident.support.x).all()
    changed = Augment(flip=True, crop=2, colour=0.4)
    one, data = episode(4, 5, augment=changed)
    batch = data.on_after_batch_transfer(list(data.train_dataloader())[1], 0)
    assert (batch.query.x[1] == one.query.x[0]).all()
    assert (episode(8, 5, augment=changed, on_device=True)[0].query.x == one.query.x).all()
    assert (one.query.x != plain.query.x).any()
    validation = EpisodeDataModule(source, way=3, shot=1, query=2, augment=changed).episode("val", 0)
    assert (validation.query.x == EpisodeDataModule(source, way=3, shot=1, query=2).episode("val", 0).query.x).all()
