"""Glyphs: letters drawn from the fonts that ship with Matplotlib. The default data set; no download."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from imaml_lightning.data.bank import BankClass
from imaml_lightning.data.base import SPLITS, Split
from imaml_lightning.data.class_source import ClassSource, progress

#: Whole scripts, so that nothing of a test script is seen in training. In this order a shape that two
#: splits share is kept: test letters first, then validation.
SCRIPTS: dict[Split, tuple[str, ...]] = {
    "test": ("ARMENIAN", "GEORGIAN", "HEBREW", "LAO"),
    "val": ("ARABIC",),
    "train": ("LATIN", "GREEK", "CYRILLIC", "CANADIAN"),
}
DRAWINGS = 20  # a character, as in Omniglot
SIDE = 28  # pixels of a drawing
INK = 20  # pixels of its longer side before the random change
MIN_FACES = 4
_BOX = 2 * INK  # letters are kept at twice their size, so that the last step averages 2 x 2 pixels
_EM = 64  # pixels of the type that letters are first set in
_SAME = 0.99  # cosine of two shapes from which they are one class
_ALIKE = 0.95  # and from which they may not be in different splits

#: face number -> letter filling its box, uint8 [_BOX, _BOX]
Faces = dict[int, np.ndarray]


class Glyphs(ClassSource):
    """Letters of nine scripts at 28 x 28, 20 drawings a letter, ink = 255.

    Each letter that four or more DejaVu and STIX faces have is drawn 20 times, from its faces in turn, each
    time under a small random affine change, always the same ones. Sizes are made equal before that, so a
    class is a shape: of letters of one shape (o, O, ο, о; Hebrew and Arabic presentation forms) one is
    kept. Splits are by Unicode script: train Latin, Greek, Cyrillic and Canadian syllabics; val Arabic;
    test Armenian, Georgian, Hebrew and Lao. A training letter that looks like a test letter is left out.

    Args:
        cache: folder of the bank; None means ``$IMAML_CACHE``, or ``~/.cache/imaml_lightning``.
    """

    shape = (1, SIDE, SIDE)
    ink = True

    def recipe(self) -> Mapping[str, object]:
        return {"source": "glyphs", "version": 1, "fonts": _fonts_digest(), "pillow": PIL.__version__}

    def build(self) -> Iterator[BankClass]:
        letters = {c: faces for c, faces in _render().items() if len(faces) >= MIN_FACES}
        kept = _without_lookalikes(letters)
        rng = np.random.default_rng(0)
        for split in SPLITS:
            for c in progress(kept[split], f"Drawing {split} letters"):
                yield BankClass(split, f"{unicodedata.name(c)} {c}", _draw(letters[c], rng), _script(c) or "")


def _font_files() -> list[Path]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted([*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf")])


@cache
def _fonts_digest() -> str:
    digest = hashlib.sha256()
    for path in _font_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _script(character: str) -> str | None:
    """The script of a letter, which is the first word of its Unicode name; None for anything else."""
    letter = unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo")
    return unicodedata.name(character, "?").split()[0] if letter else None


def _render() -> dict[str, Faces]:
    """All letters of the scripts above in all faces that have them, in the order of their codes."""
    scripts = {script for scripts in SCRIPTS.values() for script in scripts}
    letters: dict[str, Faces] = defaultdict(dict)
    for face, path in enumerate(progress(_font_files(), "Rendering letters")):
        font = ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)
        for code, glyph in FT2Font(str(path)).get_charmap().items():
            # Glyph 0 is the box that stands for a missing letter.
            if glyph and _script(chr(code)) in scripts:
                image = _boxed(font, chr(code))
                if image is not None:
                    letters[chr(code)][face] = image
    return dict(sorted(letters.items()))


def _boxed(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """A letter scaled to fill a square box, centred; None if it leaves no ink."""
    image = Image.new("L", (4 * _EM, 3 * _EM))
    ImageDraw.Draw(image).text((2 * _EM, 1.5 * _EM), character, fill=255, font=font, anchor="mm")
    ink = image.getbbox()
    if ink is None:
        return None
    image = image.crop(ink)
    scale = _BOX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    box = Image.new("L", (_BOX, _BOX))
    box.paste(
        image.resize(size, Image.Resampling.BILINEAR),
        ((_BOX - size[0]) // 2, (_BOX - size[1]) // 2),
    )
    return np.asarray(box)


def _without_lookalikes(letters: Mapping[str, Faces]) -> dict[Split, list[str]]:
    """The letters of each split, less those that look like one kept before.

    Looks are compared in every upright face that both letters have: any will do for a rejection.
    """
    split_of = {script: split for split, scripts in SCRIPTS.items() for script in scripts}
    # Stable: within a split by code.
    order = sorted(letters, key=lambda c: list(SCRIPTS).index(split_of[_script(c) or ""]))
    splits = np.array([split_of[_script(c) or ""] for c in order])
    alike = _similarity([letters[c] for c in order])
    limit = np.where(splits[:, None] == splits, _SAME, _ALIKE)
    clash = alike >= limit
    kept = np.zeros(len(order), bool)
    for i in range(len(order)):
        kept[i] = not clash[i, kept].any()
    return {s: [c for c, keep in zip(order, kept & (splits == s), strict=True) if keep] for s in SCRIPTS}


def _similarity(letters: list[Faces]) -> np.ndarray:
    """Largest cosine ``[letter, letter]`` between two letters in one face, at half resolution."""
    upright = [n for n, f in enumerate(_font_files()) if not any(w in f.stem for w in ("Ita", "Obl", "Bol"))]
    best = np.zeros((len(letters), len(letters)), np.float32)
    for face in upright:
        rows = np.array([i for i, faces in enumerate(letters) if face in faces], np.intp)
        if rows.size:
            boxes = np.stack([letters[i][face] for i in rows]).astype(np.float32)
            small = boxes.reshape(len(rows), INK, 2, INK, 2).mean((2, 4)).reshape(len(rows), -1)
            small /= np.linalg.norm(small, axis=1, keepdims=True)
            where = np.ix_(rows, rows)
            best[where] = np.maximum(best[where], small @ small.T)
    return best


def _draw(faces: Faces, rng: np.random.Generator) -> np.ndarray:
    """Drawings of a letter, uint8 ``[image, channel, height, width]``, from its faces in turn."""
    boxes = [faces[face] for face in sorted(faces)]
    images = torch.from_numpy(np.stack([boxes[i % len(boxes)] for i in range(DRAWINGS)])).float()
    theta = torch.from_numpy(_random_affine(rng).astype(np.float32))
    grid = functional.affine_grid(theta, [DRAWINGS, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    drawn = functional.grid_sample(images[:, None], grid, align_corners=False)
    return functional.avg_pool2d(drawn, 2).round().to(torch.uint8).numpy()


def _random_affine(rng: np.random.Generator) -> np.ndarray:
    """Small changes ``[image, 2, 3]`` that take a place in the drawing to its place in the box."""
    angle = rng.uniform(-10, 10, DRAWINGS) * math.pi / 180
    shear = rng.uniform(-0.15, 0.15, DRAWINGS)
    width, height = rng.uniform(0.85, 1.1, (2, DRAWINGS)) * INK / SIDE
    shift = rng.uniform(-1.5, 1.5, (DRAWINGS, 2, 1)) * 2 / SIDE  # the drawing is 2 wide
    cos, sin = np.cos(angle), np.sin(angle)
    rotate = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)
    stretch = np.array([[width, shear * height], [0 * width, height]]).transpose(2, 0, 1)
    back = np.linalg.inv(rotate @ stretch)
    return np.concatenate([back, -back @ shift], axis=2)
