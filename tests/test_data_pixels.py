"""Pixels: pictures of every mode and depth as they look."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_files import folder, saved

from imaml_lightning.data.images import read_image
from imaml_lightning.errors import UsageError

RAMP = (np.arange(8) * 65535 // 7).astype(np.uint16)[None].repeat(8, 0)
EIGHT = [0, 36, 73, 109, 146, 182, 219, 255]  # of which it is 257 times


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
