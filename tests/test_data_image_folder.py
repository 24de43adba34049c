"""A folder of pictures: what is read from it, how it is divided, and what is refused."""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaml_lightning.data import SPLITS, ClassBank, EpisodeDataModule, ImageFolder
from imaml_lightning.data.images import read_image
from imaml_lightning.errors import DataWarning, UsageError


def paint(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 12)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def write_classes(root: Path, count: int, pictures: int = 4, first: int = 0) -> None:
    for number in range(first, first + count):
        for i in range(pictures):
            paint(root / f"class{number:02d}" / f"{i}.png", (number, i, 0))


def folder(root: Path, **options) -> ImageFolder:
    return ImageFolder(str(root), **{"size": 8, "cache": str(root.parent / "cache"), **options})


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


RAMP = (np.arange(8) * 65535 // 7).astype(np.uint16)[None].repeat(8, 0)
EIGHT = [0, 36, 73, 109, 146, 182, 219, 255]  # of which it is 257 times


def saved(array: np.ndarray, name: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, name, **options)
    return stream.getvalue()


def rgb16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits a colour, which Pillow reads and does not write: red is the array, green and blue are black."""
    height, width = array.shape
    rows = np.zeros((height, width, 3), ">u2")
    rows[..., 0] = array

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DEEP = {
    "I;16 png": saved(RAMP, "PNG"),
    "I;16 tiff": saved(RAMP, "TIFF"),
    "I;16 jpeg 2000": saved(RAMP, "JPEG2000"),
    "I;16B tiff": saved(RAMP.astype(">u2"), "TIFF"),
    "I tiff": saved(RAMP.astype(np.int32), "TIFF"),
    "I pgm": saved(RAMP, "PPM"),
    "F tiff": saved((RAMP / 65535).astype(np.float32), "TIFF"),
    "I;16 white is zero": saved(65535 - RAMP, "TIFF", tiffinfo={262: 0}),
    "F white is zero": saved((1 - RAMP / 65535).astype(np.float32), "TIFF", tiffinfo={262: 0}),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_ramp_is_divided_by_257(kind: str, channels: int) -> None:
    read = read_image(io.BytesIO(DEEP[kind]), (channels, 8, 8))
    assert read[:, 0].tolist() == [EIGHT] * channels
    assert (read == read[:1, :1]).all()


def test_a_deep_colour_ramp_keeps_its_upper_bits() -> None:
    read = read_image(io.BytesIO(rgb16(RAMP)), (3, 8, 8))
    assert read[0, 0].tolist() == EIGHT
    assert not read[1:].any()
    with pytest.raises(UsageError, match="the upper 8 alone are read"):
        read_image(io.BytesIO(rgb16(RAMP)), (3, 8, 8), white=4095)


def test_white_is_what_the_user_says() -> None:
    twelve = np.arange(8)[None].repeat(8, 0) * 585  # 4095 is 7 times 585
    for kind in (np.uint16, np.int32, np.float32):
        stream = io.BytesIO(saved(twelve.astype(kind), "TIFF"))
        assert read_image(stream, (1, 8, 8), white=4095)[0, 0].tolist() == EIGHT
    eight = np.array(EIGHT)[None].repeat(8, 0)
    for kind, white in ((np.int32, 255), (np.uint8, 9)):  # 8 bits say themselves what is white
        stream = io.BytesIO(saved(eight.astype(kind), "TIFF"))
        assert read_image(stream, (1, 8, 8), white=white)[0, 0].tolist() == EIGHT


@pytest.mark.parametrize(
    ("array", "white", "sentence"),
    [
        (RAMP.astype(np.float32), None, "go from 0 to 65535 and not from 0 to 1;"),
        (RAMP.astype(np.float32) / 65535 - 0.5, None, "from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), None, "from nan"),
        (RAMP.astype(np.int32) * 2, None, "from 0 to 131070 and not from 0 to 65535"),
        (RAMP.astype(np.int32) - 9, None, "from -9"),
        (RAMP.astype(np.int32) // 257, None, "may be of 8 or of 16 bits"),
        (RAMP, 4095.0, "from 0 to 65535 and not from 0 to 4095"),
    ],
)
def test_what_is_beyond_white_is_refused(array: np.ndarray, white: float | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"{sentence}.*data.source.white"):
        read_image(io.BytesIO(saved(array, "TIFF")), (1, 8, 8), white=white)


def test_a_folder_of_deep_pictures_gives_different_pictures(tmp_path: Path) -> None:
    for number in range(24):
        file = tmp_path / "root" / f"class{number // 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(saved(np.full((8, 8), 300 + 2570 * number, np.uint16), "PNG"))
    bank = folder(tmp_path / "root", channels=1).bank
    means = sorted(bank.examples.mean((1, 2, 3)).tolist())
    assert means == [round((300 + 2570 * number) / 257) for number in range(24)]


MODES = {
    "1": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "L": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "LA": (Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
    "LA half": (Image.new("LA", (8, 8), (0, 127)), (128, 128, 128)),
    "P": (Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4), (10, 200, 30)),
    "RGBA": (Image.new("RGBA", (8, 8), (10, 200, 30, 255)), (10, 200, 30)),
    "RGBA clear": (Image.new("RGBA", (8, 8), (10, 200, 30, 0)), (255, 255, 255)),
    "CMYK": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), (0, 255, 255)),
    "YCbCr": (Image.new("RGB", (8, 8), (10, 200, 30)).convert("YCbCr"), (10, 200, 30)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_as_it_looks(mode: str) -> None:
    image, colour = MODES[mode]
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert read_image(stream, (3, 8, 8))[:, 4, 4].tolist() == pytest.approx(colour, abs=2)
    stream.seek(0)
    grey = np.dot(colour, (0.299, 0.587, 0.114))
    assert read_image(stream, (1, 8, 8))[0, 4, 4] == pytest.approx(grey, abs=2)


def test_what_is_transparent_by_its_number_is_paper() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 0, 0])
    image.paste(0, (0, 0, 8, 4))
    for name, transparency in (("PNG", 0), ("GIF", 0), ("PNG", b"\x00\xff")):
        stream = io.BytesIO()
        image.save(stream, name, transparency=transparency)
        assert read_image(stream, (3, 8, 8))[:, [0, 7], 0].T.tolist() == [[255, 255, 255], [250, 0, 0]]
    deep = saved(np.full((8, 8), 514, np.uint16), "PNG", transparency=514)
    assert read_image(io.BytesIO(deep), (1, 8, 8)).min() == 255


def test_a_deep_picture_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top comes to the right
    top = np.zeros((8, 8), np.uint16)
    top[:4] = 65535
    for array in (top, (top / 65535).astype(np.float32)):
        name = "PNG" if array.dtype == np.uint16 else "TIFF"
        turned = read_image(io.BytesIO(saved(array, name, exif=exif)), (1, 8, 8))[0]
        assert turned[0].tolist() == [0] * 4 + [255] * 4


def test_groups_that_are_taken_for_classes_are_warned_of(tmp_path: Path) -> None:
    for site in range(5):
        write_classes(tmp_path / "root" / f"site{site}", count=2, first=10 * site)
    with pytest.warns(DataWarning, match=r"site0, site1, .* one folder deeper.*grouped true"):
        folder(tmp_path / "root").prepare()
    folder(tmp_path / "root", grouped=True).prepare()
    (tmp_path / "other").mkdir()
    for name in ("training", "validation", "testing"):
        write_classes(tmp_path / "other" / name, count=2)
    with pytest.warns(DataWarning, match="name them train, val and test"):
        folder(tmp_path / "other").prepare()
    for site in range(5):
        write_classes(tmp_path / "deeper" / f"site{site}" / "class" / "day", count=2)
    with pytest.warns(DataWarning, match="move the pictures up"):
        folder(tmp_path / "deeper", grouped=True).prepare()


def test_small_classes_are_left_out_with_a_count(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=12)
    write_classes(tmp_path / "root", count=2, pictures=1, first=12)
    source = folder(tmp_path / "root", min_examples=4)
    with pytest.warns(DataWarning, match=r"2 classes of .* fewer than 4 pictures are left out: class12 and class13"):
        bank = source.bank
    assert len(bank.names) == 12
    assert min(bank.counts) == 4
    with pytest.raises(UsageError, match=r"or leave such classes out by --data\.source\.min_examples 4"):
        folder(tmp_path / "root", min_examples=1, fractions=(0.98, 0.01, 0.01)).check("train", 2, 1, 3)


def messy(root: Path) -> None:
    """A folder as people have them: names of all scripts, hidden and foreign files, damaged and animated pictures."""
    write_classes(root, count=5)
    for name in ("Ärger und Weiß", "森林", "naïve 🌲"):
        for i in range(4):
            paint(root / name / f"ö {i} 木.png", (i, i, 200))
    (root / "class00" / ".hidden.png").write_bytes(b"x")
    (root / "class00" / ".thumbnails").mkdir()
    (root / "class00" / ".thumbnails" / "0.png").write_bytes(b"x")
    (root / ".cache").mkdir()
    paint(root / ".cache" / "0.png", (0, 0, 0))
    (root / "class00" / "Thumbs.db").write_bytes(b"x")
    (root / "class01" / "empty.png").touch()
    (root / "class01" / "cut.jpg").write_bytes(saved(np.zeros((64, 64, 3), np.uint8), "JPEG")[:300])
    (root / "class01" / "words.png").write_text("no picture")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(root / "class02" / "film.gif", save_all=True, append_images=frames[1:])


def test_a_messy_folder_is_refused_or_read_and_nothing_is_silent(tmp_path: Path) -> None:
    messy(tmp_path / "root")
    with pytest.raises(UsageError, match=r"class01/cut\.jpg cannot be read"):
        folder(tmp_path / "root").prepare()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bank = folder(tmp_path / "root", leave_out=True).bank
    said = "\n".join(str(one.message) for one in caught)
    assert "3 files are left out" in said
    for name in ("empty.png", "cut.jpg", "words.png"):
        assert name in said
    assert "1 pictures have several frames, of which the first is read" in said
    assert "film.gif" in said
    counts = dict(zip(bank.names, bank.counts.tolist(), strict=True))
    unicode = {"Ärger und Weiß": 4, "森林": 4, "naïve 🌲": 4}
    assert counts == {f"class{n:02d}": 4 + (n == 2) for n in range(5)} | unicode


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=5)
    (tmp_path / "root" / "empty").mkdir()
    with pytest.warns(DataWarning, match="1 folders in .* hold no picture and are no class: empty"):
        folder(tmp_path / "root").prepare()
    (tmp_path / "root" / "empty").rmdir()
    (tmp_path / "root" / "class01" / "IMG.HEIC").write_bytes(b"x")
    with pytest.warns(DataWarning, match=r"1 files in .* other kinds than pictures, and are not used: \.heic"):
        folder(tmp_path / "root").prepare()
    (tmp_path / "root" / "class01" / "IMG.HEIC").unlink()
    paint(tmp_path / "root" / "loose.png", (0, 0, 0))
    with pytest.warns(DataWarning, match="1 pictures lie in .* in no class, and are not used: loose"):
        folder(tmp_path / "root").prepare()
    for split in SPLITS:
        write_classes(tmp_path / "given" / split, count=1)
    write_classes(tmp_path / "given", count=1, first=7)
    with pytest.warns(DataWarning, match="its other folders are not used: class07"):
        folder(tmp_path / "given").prepare()


def test_no_class_left_is_said(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "0.png").touch()
    with pytest.warns(DataWarning), pytest.raises(UsageError, match=r"No class of .* is left"):
        folder(tmp_path / "root", leave_out=True).prepare()


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
