"""Who imports whom: the rooms of the package, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "imaml_lightning"
ROOT = Path(__file__).parents[1] / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

# Each room with those directly below it; it may import these, what lies below them, and the leaves.
# __init__ is the table of contents and may import everything.
LEAVES = {"episode", "errors", "_compat"}
BELOW: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"run"},
    "run": {"evaluation"},
    "evaluation": {"learner", "data"},
    "learner": {"adaptation", "models"},
    "adaptation": {"inner", "linear", "optimizers"},
    "inner": {"linear"},
    "linear": {"problem"},
    "optimizers": {"problem"},
    "problem": set(),
    "models": set(),
    "data": set(),
    **{leaf: set() for leaf in LEAVES},
}


def room(path: Path) -> str:
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
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def below(name: str) -> set[str]:
    """Every room that ``name`` may import: what lies below it, directly or not, itself, and the leaves."""
    return {name} | LEAVES if not BELOW[name] else {name}.union(*map(below, BELOW[name]))


def test_the_tree_is_the_one_stated_here() -> None:
    assert {room(path) for path in FILES} == {"__init__", *BELOW}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p != ROOT / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_down_only(path: Path) -> None:
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest != "__version__":  # a name of the package itself
            assert rest.split(".")[0] in below(room(path)), f"{room(path)} may not import {name}"


def test_data_and_learning_do_not_know_each_other() -> None:
    assert below("data") == {"data"} | LEAVES
    assert "data" not in below("learner")


def test_the_implicit_layer_knows_solvers_and_neither_networks_nor_members_of_the_family() -> None:
    known = {"inner", "linear", "errors", "problem.base", "problem.curvature", "problem.function", "problem.precision"}
    known |= {"problem.rows", "problem.solution", "adaptation.argmin"}
    for path in (ROOT / "adaptation" / "argmin").glob("*.py"):
        for name in imports(path):
            if name.startswith(f"{PACKAGE}."):
                assert any(f"{name}.".startswith(f"{PACKAGE}.{each}.") for each in known), f"{path.name}: {name}"


def test_there_are_few_rooms() -> None:
    assert len([entry for entry in ROOT.iterdir() if entry.name != "__pycache__"]) <= 17


def test_only_data_torchmeta_imports_torchmeta() -> None:
    users = {path.parent for path in FILES for name in imports(path) if name.split(".")[0] == "torchmeta"}
    assert users == {ROOT / "data" / "torchmeta"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{node.name} is longer than 50 lines"
