"""Who imports whom: the layers of the design, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "imaml_lightning"
ROOT = Path(__file__).parents[1] / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))
INSIDE = [path for path in FILES if path != ROOT / "__init__.py"]

# Each layer with those directly below it; it may import these, what lies below them, and the leaves. A layer that is
# not named here may import the leaves. __init__ is the table of contents and may import everything.
LEAVES = {"checkpoint", "compat", "errors", "checks", "rows", "draws", "episode", "solution", "metrics"}
BELOW: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"meta_learner", "data", "callbacks", "loggers", "predictor", "signals"},
    "predictor": {"meta_learner"},
    "callbacks": {"compiled", "data", "diagnostics", "figures", "loggers", "signals"},
    "loggers": set(),
    "signals": set(),
    "figures": {"objective"},
    "evaluation": {"diagnostics", "data", "checkpoint"},
    "uncertainty": {"diagnostics"},
    "diagnostics": {"meta_learner"},
    "dashboard": set(),
    "meta_learner": {"adaptation", "calibration", "models"},
    "calibration": {"objective"},
    "adaptation": {"inner", "linear", "curvature", "objective", "optimizers"},
    "inner": {"linear", "curvature", "objective"},
    "linear": set(),
    "optimizers": {"parameters"},
    "curvature": {"linearisation"},
    "objective": {"linearisation"},
    "linearisation": {"compiled", "proximal"},
    "compiled": {"losses", "parameters"},
    "losses": {"batching"},
    "proximal": {"parameters"},
    "parameters": {"batching", "differentiable"},
    "differentiable": set(),
    "batching": set(),
    "models": set(),
    "data": set(),
    **{leaf: set() for leaf in LEAVES},
}


def layer(path: Path) -> str:
    """The package or module, directly in imaml_lightning, that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The full name of every module, or name in a module, that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(name: str) -> set[str]:
    """Every layer that ``name`` may import: what lies below it, directly or not, itself, and the leaves."""
    found, waiting = set(LEAVES), [name]
    while waiting:
        found.add(one := waiting.pop())
        waiting += BELOW.get(one, set()) - found
    return found


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    allowed = below(layer(path))
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == PACKAGE:
            assert rest.split(".")[0] in allowed, f"{layer(path)} may not import {name}"


def test_the_layers_have_no_cycle() -> None:
    for name, direct in BELOW.items():
        assert all(name not in below(other) - LEAVES for other in direct), name


def test_every_layer_named_here_exists() -> None:
    assert {"cli", "meta_learner", "adaptation", "inner", "linear", "data", "models"} <= {layer(path) for path in FILES}


def test_data_and_learning_do_not_know_each_other() -> None:
    assert not {"meta_learner", "adaptation", "models"} & below("data")
    assert "data" not in below("meta_learner")


def test_one_file_imports_torchmeta() -> None:
    users = {path.name for path in FILES for name in imports(path) if name.split(".")[0] == "torchmeta"}
    assert users == {"torchmeta_adapter.py"}


def test_only_compat_imports_torchmeta_at_run_time() -> None:
    dynamic = {
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
        and any(isinstance(a, ast.Constant) and str(a.value).startswith("torchmeta") for a in node.args)
    }
    assert dynamic == {"compat.py"}  # to mend it
