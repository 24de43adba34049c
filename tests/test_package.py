"""The built wheel: what is in it, and that it works where nothing else of the repository is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from imaml_lightning import __version__

ROOT = Path(__file__).parents[1]
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout; with this environment's setuptools, so without a network."""
    copy, target = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheel")
    copy.mkdir()
    for name in ("imaml_lightning", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy / name)
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(target),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(copy), *options], check=True)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_its_configurations_and_who_may_use_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"imaml_lightning-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
        scripts = archive.read(f"{about}/entry_points.txt").decode()
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "imaml_lightning").rglob("*.py")}
    configs = {f"imaml_lightning/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert code | configs | {"imaml_lightning/py.typed", f"{about}/licenses/LICENSE"} <= names
    assert {name.partition("/")[0] for name in names} == {"imaml_lightning", about}
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "MIT")
    needed = {re.match(r"[\w.-]+", requirement)[0] for requirement in metadata.get_all("Requires-Dist", [])}
    assert {"torch", "lightning", "pillow", "pyyaml"} <= needed
    assert "imaml-lightning = imaml_lightning.__main__:main" in scripts


@pytest.mark.slow
def test_the_installed_package_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # What it needs is taken from here; the package itself is not, also where it is installed for editing.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()

    def said(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = str(python.with_name("imaml-lightning"))
    assert said(script, "--version") == f"imaml_lightning {__version__}\n"
    assert "fit --config omniglot_5w1s" in said(script, "--help")
    assert said(str(python), "-c", "import imaml_lightning as i; print(i.__file__)").startswith(str(site))
    small = ["--trainer.max_steps=2", "--data.train_batches=2", "--data.val_episodes=2", "--data.test_episodes=4"]
    options = [
        "--config",
        "sinusoid_5shot",
        "--config",
        "algorithms/maml",
        "--data.tasks=2",
        "--trainer.accelerator=cpu",
    ]
    assert "evaluate again" in said(script, "fit", *options, *small)
    assert "loss" in said(script, "test", "--ckpt_path", "best", "--name", "sinusoid_5shot")
