"""Files from elsewhere: fetched over https with hash and resume, unpacked within bounds, and pickles that run no code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock
from urllib.parse import urlparse

from imaml_lightning.errors import DataError

_SCHEMES = {"https"}
_BLOCK = 1 << 20
_MOST_BYTES, _MOST_FILES = 40 * 2**30, 2_000_000  # tiered-ImageNet, the largest, unpacks to 13 GB
#: What numpy arrays in pickles are made of (under numpy's names of versions 1 and 2), and nothing else.
_HARMLESS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


def md5_of(path: Path) -> str:
    """The file's MD5, in hexadecimal: what the data sets' authors published."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def verified(path: Path, md5: str, url: str) -> Path:
    """The path, if the file there is the published one.

    Raises:
        DataError: it is missing, or another one.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: bring the file from {url}.")
    if (found := md5_of(path)) != md5:
        raise DataError(f"{path} has MD5 {found} and not {md5}: it is damaged or another file; bring that of {url}.")
    return path


def fetch(url: str, path: Path, md5: str) -> None:
    """Download to ``path``, going on from ``path.part`` where an earlier attempt stopped.

    Raises:
        DataError: no https, no network, no room, or what came is not the file: which one to bring instead.
    """
    part = path.with_name(f"{path.name}.part")
    remedy = f"bring that file yourself (--data.source.archive, or put it at {path})"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with _open(request) as answer, part.open("ab" if answer.status == 206 else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                if file.tell() > _MOST_BYTES:
                    raise DataError(f"{url} sends more than {_MOST_BYTES >> 30} GiB: {remedy}.")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: the part is whole
            raise DataError(f"{url} cannot be fetched ({error}): {remedy}.") from error
    except OSError as error:
        raise DataError(f"{url} cannot be fetched ({error}): go on with the same command, or {remedy}.") from error
    if md5_of(part) != md5:
        part.unlink()
        raise DataError(f"{url} did not send the published file (MD5 {md5}): {remedy}.")
    os.replace(part, path)


class _OnlySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    _check_scheme(request.full_url)
    return urllib.request.build_opener(_OnlySecure).open(request, timeout=60)


def _check_scheme(url: str) -> None:
    if urlparse(url).scheme not in _SCHEMES:
        raise DataError(f"{url} is not https: fetch the file by other means and name it by --data.source.archive.")


def check_members(path: Path) -> None:
    """Refuse an archive that would unpack to too much, or outside its folder, before a byte of it is unpacked."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [(one.filename, one.file_size, True) for one in archive.infolist()]
        else:
            with tarfile.open(path) as archive:
                members = [(one.name, one.size, one.isfile() or one.isdir()) for one in archive]
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is not an archive, or is damaged ({error}): bring it anew.") from error
    outside = [name for name, _, plain in members if not plain or os.path.isabs(name) or ".." in Path(name).parts]
    if outside:
        raise DataError(f"{path} holds {outside[0]}, which does not belong in a data set: bring another copy.")
    if len(members) > _MOST_FILES or sum(size for _, size, _ in members) > _MOST_BYTES:
        raise DataError(
            f"{path} unpacks to more than {_MOST_BYTES >> 30} GiB or {_MOST_FILES:,} files: bring another copy."
        )


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a pickle asks for {module}.{name}, which has no place in a data set")


def load_arrays(file: BinaryIO, **options: Any) -> Any:
    """``pickle.load`` for numbers, text, containers and numpy arrays; anything else is refused.

    Raises:
        pickle.UnpicklingError: the pickle asks for other code.
    """
    return _ArraysOnly(file, **options).load()


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """While this is open, ``pickle.load`` is :func:`load_arrays` and tar files are unpacked with Python's data filter."""
    with (
        mock.patch.object(pickle, "load", load_arrays),
        mock.patch.object(tarfile.TarFile, "extraction_filter", staticmethod(tarfile.data_filter), create=True),
    ):
        yield
