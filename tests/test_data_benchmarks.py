"""torchmeta's data sets from small archives in their raw formats, and the files that are refused."""

from __future__ import annotations

import http.server
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import CONFIGS
from raw_archives import WRITERS, tar

from imaml_lightning import data
from imaml_lightning.cli import main
from imaml_lightning.data import SPLITS, Benchmark
from imaml_lightning.data import archives as files
from imaml_lightning.data.sources.benchmark import SETS
from imaml_lightning.data.torchmeta import adapter
from imaml_lightning.errors import UsageError


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a small archive, and makes its hash and number of examples the published ones."""

    def write(name: str) -> Path:
        (tmp_path / "brought").mkdir(exist_ok=True)
        wanted = adapter.SETS[name]
        path = WRITERS[name][0](tmp_path / "brought" / wanted.archive)
        if wanted.md5:
            monkeypatch.setitem(adapter.SETS, name, wanted._replace(md5=files.md5_of(path)))
        few = WRITERS[name][1] * sum(SETS[name].classes)
        monkeypatch.setitem(SETS, name, SETS[name]._replace(examples=few))
        return path

    return write


def benchmark(name: str, root: Path, **options) -> Benchmark:
    return Benchmark(name, root=str(root / "data"), cache=str(root / "cache"), **options)


LARGE = ("triple_mnist", "tiered_imagenet", "cub")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in SETS])
def test_archive_that_was_brought(name: str, published, tmp_path: Path) -> None:
    archive = published(name)
    before = archive.read_bytes()
    source = benchmark(name, tmp_path, archive=str(archive))
    source.prepare()
    bank = source.bank
    shape, counts, _ = SETS[name]
    assert tuple(len(bank.splits[split]) for split in SPLITS) == counts
    assert bank.examples.shape[1:] == shape == source.shape
    assert set(np.diff(bank.starts)) == {WRITERS[name][1]}
    assert len(set(bank.names)) == sum(counts)
    assert archive.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [adapter.SETS[name].classes.folder]
    # Splits do not share a class, and what belongs together stays so.
    if name in ("tiered_imagenet", "fc100"):
        groups = [{bank.groups[i] for i in bank.splits[s]} for s in SPLITS]
        assert sum(map(len, groups)) == len(set.union(*groups))
    if name in ("cub", "double_mnist", "triple_mnist"):
        for shade, split in enumerate(SPLITS):
            assert abs(int(bank.of_class(bank.splits[split][3])[0, 0].mean()) - 100 * shade) < 4
    if len(shape) == 1:
        train = bank.examples[: bank.starts[bank.splits["train"].stop]]
        np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
    # A second time nothing but torchmeta's own files is needed.
    archive.unlink()
    again = benchmark(name, tmp_path)
    again.prepare()
    assert again.bank.path == bank.path


def test_pictures_are_those_of_their_class(published, tmp_path: Path) -> None:
    bank = benchmark("mini_imagenet", tmp_path, archive=str(published("mini_imagenet"))).bank
    for split in SPLITS:
        for place, number in enumerate(bank.splits[split]):
            assert bank.names[number] == f"n{split}{place:03d}"
            assert bank.of_class(number)[:, 0, 5, 5].tolist() == [2 * place, 2 * place + 1]
    source = benchmark("mini_imagenet", tmp_path, size=42)
    assert source.bank.examples.shape[1:] == source.shape == (3, 42, 42)


def test_a_data_set_that_lacks_examples_is_refused(published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = published("mini_imagenet")
    monkeypatch.setitem(SETS, "mini_imagenet", SETS["mini_imagenet"]._replace(examples=60_000))
    with pytest.raises(UsageError, match="has 200 examples and not the published 60,000: remove its folder and bring"):
        benchmark("mini_imagenet", tmp_path, archive=str(archive)).prepare()
    assert not list((tmp_path / "cache").glob("*.bank"))


def test_what_is_missing_says_which_file_to_bring(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name the file mini-imagenet.tar.gz of https://.* --data.source.archive"):
        benchmark("mini_imagenet", tmp_path).prepare()
    with pytest.raises(UsageError, match=r"nowhere\.tar does not exist: bring tiered-imagenet.tar of https"):
        benchmark("tiered_imagenet", tmp_path, archive=str(tmp_path / "nowhere.tar")).prepare()
    with pytest.raises(UsageError, match=r"openml.org/d/6 is not fetched by itself"):
        benchmark("letter", tmp_path, download=True).prepare()


def test_another_file_is_refused_before_it_is_opened(published, tmp_path: Path) -> None:
    archive = published("mini_imagenet")
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"mini-imagenet.tar.gz has MD5 .* and not"):
        benchmark("mini_imagenet", tmp_path, archive=str(archive)).prepare()
    assert not list((tmp_path / "data" / "miniimagenet").iterdir())


class _Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_with_code_is_refused_though_its_hash_be_right(published, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive = published("mini_imagenet")
    tar(archive, {f"mini-imagenet-cache-{s}.pkl": pickle.dumps(_Evil()) for s in SPLITS}, "w:gz")
    wanted = adapter.SETS["mini_imagenet"]
    monkeypatch.setitem(adapter.SETS, "mini_imagenet", wanted._replace(md5=files.md5_of(archive)))
    with pytest.raises(UsageError, match=r"cannot be processed \(a pickle asks for posix.system"):
        benchmark("mini_imagenet", tmp_path, archive=str(archive)).prepare()
    assert not (tmp_path / "owned").exists()
    assert pickle.loads(pickle.dumps(Path("x"))) == Path("x")  # and elsewhere pickles are as ever


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "many", "large", "cut"])
def test_archives_out_of_bounds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sentence = tmp_path / "a.tar", "does not belong in a data set"
    if kind in ("outside", "absolute"):
        tar(path, {"../x" if kind == "outside" else "/tmp/x": b"1"}, "w")
    elif kind == "link":
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo("x")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    else:
        tar(path, {f"x{i}": b"123" for i in range(5)}, "w")
        monkeypatch.setattr(files, "_MOST_FILES" if kind == "many" else "_MOST_BYTES", 4)
        sentence = "unpacks to more than"
    if kind == "cut":
        path.write_bytes(b"no archive")
        sentence = "not an archive, or is damaged"
    with pytest.raises(UsageError, match=sentence):
        files.check_members(path)


def test_classes_that_are_not_the_published_ones_are_refused(published, tmp_path: Path) -> None:
    benchmark("cifar_fs", tmp_path, archive=str(published("cifar_fs"))).prepare()
    lists = tmp_path / "data" / "cifar100" / "cifar-fs" / "val_labels.json"
    lists.write_text('[["fish", "shark"]]')
    with pytest.raises(UsageError, match="has 1 val classes and not the published 16"):
        benchmark("cifar_fs", tmp_path).prepare()


# --- downloads, from a server on this machine ----------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, bytes, list[str]]]:
    """A URL, what lies there, and the ranges that were asked for. Only these tests may go by http."""
    content = np.random.default_rng(0).bytes(300_000)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/x")
                self.end_headers()
                return
            begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
            asked.append(self.headers.get("Range", ""))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin:])

        def log_message(self, *_: object) -> None:
            """Silent."""

    monkeypatch.setattr(files, "_SCHEMES", {"http", "https"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/x", content, asked
        running.shutdown()


def md5(content: bytes, tmp_path: Path) -> str:
    (tmp_path / "copy").write_bytes(content)
    return files.md5_of(tmp_path / "copy")


@pytest.mark.parametrize("done", [0, 100_000, 300_000])
def test_download_goes_on_where_it_stopped(server, tmp_path: Path, done: int) -> None:
    url, content, asked = server
    place = tmp_path / "a" / "x.tar"
    place.parent.mkdir()
    if done:
        (tmp_path / "a" / "x.tar.part").write_bytes(content[:done])
    files.fetch(url, place, md5(content, tmp_path))
    assert place.read_bytes() == content
    assert asked == ["" if not done else f"bytes={done}-"]
    assert os.listdir(tmp_path / "a") == ["x.tar"]


def test_download_of_another_file_is_refused_and_begun_anew(server, tmp_path: Path) -> None:
    url, content, _ = server
    (tmp_path / "x.tar.part").write_bytes(b"something else")
    with pytest.raises(UsageError, match="did not send the published file"):
        files.fetch(url, tmp_path / "x.tar", md5(content, tmp_path))
    files.fetch(url, tmp_path / "x.tar", md5(content, tmp_path))
    assert (tmp_path / "x.tar").read_bytes() == content


def test_download_that_cannot_be_says_which_file_to_bring(server, tmp_path: Path, monkeypatch) -> None:
    url, _, _ = server
    dead = "http://127.0.0.1:9/x"
    with pytest.raises(UsageError, match=r"cannot be fetched .*bring that file yourself \(--data.source.archive"):
        files.fetch(dead, tmp_path / "x.tar", "0")
    with pytest.raises(UsageError, match="is not https"):
        files.fetch(url.replace("/x", "/moved"), tmp_path / "x.tar", "0")
    monkeypatch.setattr(files, "_SCHEMES", {"https"})
    with pytest.raises(UsageError, match="is not https"):
        files.fetch(url, tmp_path / "x.tar", "0")
    monkeypatch.setattr(files, "_SCHEMES", {"http"})
    monkeypatch.setattr(files, "_MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="sends more than"):
        files.fetch(url, tmp_path / "x.tar", "0")


# --- configurations ------------------------------------------------------------------------------------


def command(*args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["imaml_lightning"])
    main(list(args))


@pytest.mark.parametrize("config", sorted((CONFIGS / "benchmarks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_benchmark_config_is_understood(config: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command("fit", "--config", str(config), "--print_config", monkeypatch=monkeypatch)
    assert ended.value.code == 0
    understood = yaml.safe_load(capsys.readouterr().out)
    source = understood["data"]["source"]
    made = getattr(data, source["class_path"].rpartition(".")[2])(**source["init_args"])
    network = understood["model"]["network"]["init_args"]
    if len(made.shape) == 3:
        assert made.shape == (network["channels"], network["size"], network["size"])
    else:
        assert made.shape == (network["features"],)
        assert network["outputs"] == understood["data"]["way"]


def test_every_benchmark_has_a_config() -> None:
    kinds = {"plants" if name.startswith("plants_") else name for name in SETS}
    assert kinds <= {path.stem for path in (CONFIGS / "benchmarks").glob("*.yaml")}


def test_benchmark_trains_from_the_command_line(published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = published("plants_shape")
    monkeypatch.chdir(tmp_path)
    options = [
        "--data.source.name",
        "plants_shape",
        "--data.source.archive",
        str(archive),
        "--data.query",
        "2",
        "--data.eval_query",
        "2",
        "--data.tasks",
        "2",
    ]
    config = str(CONFIGS / "benchmarks" / "plants.yaml")
    quick = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    command("fit", "--config", config, *options, *quick, monkeypatch=monkeypatch)
