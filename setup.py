"""What pyproject.toml cannot say: the configurations of configs/ are installed inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

configs = {
    ".".join(("imaml_lightning", *folder.parts)): folder.as_posix()
    for folder in sorted({path.parent for path in Path("configs").rglob("*.yaml")})
}
setup(
    packages=[*find_packages(include=["imaml_lightning", "imaml_lightning.*"]), *configs],
    package_dir=configs,
    package_data={"": ["*.yaml", "py.typed"]},
)
