"""Small archives in the raw formats of the published data sets, as their authors pack them."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from imaml_lightning.data.torchmeta.class_datasets import get_asset

SPLITS = {"train": 0, "val": 1, "test": 2}


def png(shade: int, size: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), shade if mode == "L" else (shade, 0, 0)).save(file, kind)
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def mini_imagenet(path: Path) -> Path:
    files = {}
    for split, count in (("train", 64), ("val", 16), ("test", 20)):
        images = np.zeros((2 * count, 84, 84, 3), np.uint8)
        images[:, :, :, 0] = np.arange(2 * count)[:, None, None]
        classes = {f"n{split}{i:03d}": [2 * i, 2 * i + 1] for i in range(count)}
        files[f"mini-imagenet-cache-{split}.pkl"] = pickle.dumps({"image_data": images, "class_dict": classes})
    return tar(path, files, "w:gz")


def tiered_imagenet(path: Path) -> Path:
    files = {}
    for split, count in (("train", 351), ("val", 97), ("test", 160)):
        encoded = [np.frombuffer(png(i % 250, 84), np.uint8) for i in range(count)]
        labels = {
            "label_specific": np.arange(count),
            "label_specific_str": [f"{split} thing {i}" for i in range(count)],
            "label_general": np.arange(count) // 20,
            "label_general_str": [f"{split} kind {i}" for i in range(count // 20 + 1)],
        }
        files[f"tiered-imagenet/{split}_images_png.pkl"] = pickle.dumps(encoded)
        files[f"tiered-imagenet/{split}_labels.pkl"] = pickle.dumps(labels)
    return tar(path, files, "w")


def cifar(path: Path) -> Path:
    pairs = sorted(tuple(pair) for split in SPLITS for pair in get_asset("cifar100", "cifar-fs", f"{split}.json"))
    coarse, fine = sorted({c for c, _ in pairs}), sorted(f for _, f in pairs)
    parent = {f: c for c, f in pairs}
    data = np.zeros((100, 3, 1024), np.uint8)
    data[:, 0] = np.arange(100)[:, None]
    part = {
        b"data": data.reshape(100, -1),
        b"fine_labels": list(range(100)),
        b"coarse_labels": [coarse.index(parent[name]) for name in fine],
    }
    meta = {"fine_label_names": fine, "coarse_label_names": coarse}
    files = {"train": part, "test": {**part, b"data": part[b"data"] + np.uint8(100)}, "meta": meta}
    return tar(path, {f"cifar-100-python/{n}": pickle.dumps(c, protocol=2) for n, c in files.items()}, "w:gz")


def cub(path: Path) -> Path:
    files = {}
    for split, shade in SPLITS.items():
        for label in get_asset("cub", f"{split}.json"):
            for i in range(2):
                files[f"CUB_200_2011/images/{label}/{i}.jpg"] = png(100 * shade + 10 * i, 60 + i, "JPEG")
    return tar(path, files, "w:gz")


def digits(folder: str, size: int, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for split, shade in SPLITS.items():
            picture = png(100 * shade, size, mode="L")
            for label in get_asset(folder, f"{split}.json"):
                archive.writestr(f"{path.stem}/{split}/{label}/0_{label}.png", picture)
    return path


def table(folder: str, features: int, path: Path) -> Path:
    labels = [label for split in SPLITS for label in get_asset(folder, f"{split}.json")]
    lines = ["@RELATION small", *(f"@ATTRIBUTE V{i} NUMERIC" for i in range(features))]
    lines += [f"@ATTRIBUTE Class {{{','.join(labels)}}}", "@DATA"]
    rng = np.random.default_rng(0)
    for number, label in enumerate(labels):
        for _ in range(3):
            lines.append(",".join(map(str, [*np.r_[number, rng.random(features - 1)].round(4), label])))
    path.write_text("\n".join(lines))
    return path


#: Name -> (writer, examples of a class).
WRITERS = {
    "mini_imagenet": (mini_imagenet, 2),
    "tiered_imagenet": (tiered_imagenet, 1),
    "cifar_fs": (cifar, 2),
    "fc100": (cifar, 2),
    "cub": (cub, 2),
    "double_mnist": (lambda path: digits("doublemnist", 64, path), 1),
    "triple_mnist": (lambda path: digits("triplemnist", 84, path), 1),
    "letter": (lambda path: table("letter", 16, path), 3),
    "plants_margin": (lambda path: table("one_hundred_plants_margin", 64, path), 3),
    "plants_shape": (lambda path: table("one_hundred_plants_shape", 64, path), 3),
    "plants_texture": (lambda path: table("one_hundred_plants_texture", 64, path), 3),
}
