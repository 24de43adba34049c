"""Notebooks: they run from top to bottom, and what is committed is what such a run leaves."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Those that train take about a minute each.
QUICK = {"how_imaml_works"}
TOTAL_BYTES = 3_000_000


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """The number of pictures of each code cell."""
    return [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in code_cells(notebook)]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in NOTEBOOKS],
)
def test_notebook_runs_and_draws_what_is_committed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("IMAML_STILL", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IMAML_CHECKPOINT", "IMAML_CHECKPOINTS", "IMAML_WANDB"):
        monkeypatch.delenv(name, raising=False)
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs = []
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert pictures(fresh) == pictures(committed)
    assert sum(pictures(fresh)) >= 4


def test_committed_notebooks_are_whole_and_small() -> None:
    assert len(NOTEBOOKS) >= 4
    assert sum(path.stat().st_size for path in NOTEBOOKS) < TOTAL_BYTES
    for path in NOTEBOOKS:
        text = path.read_text()
        for private in (str(Path.home()) + os.sep, "/tmp/"):
            assert private not in text, f"{path.name} names a folder of one machine"
        cells = code_cells(nbformat.read(path, as_version=4))
        assert all(cell.execution_count for cell in cells), f"{path.name}: run it from top to bottom"
        assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
