"""Notebooks: they run from top to bottom, and what is committed is what such a run leaves."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure

from imaml_lightning.evaluation.figures import sliders

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


MOVED = """
from ipywidgets import FloatSlider
from ipywidgets.widgets.widget import _instances
for strength in (0.25, 0.75):
    next(w for w in _instances.values() if isinstance(w, FloatSlider)).value = strength
print(drawn)
"""
SLIDERS = """
from matplotlib.figure import Figure
from imaml_lightning.evaluation.figures import sliders
drawn = []
def draw(strength):
    drawn.append(strength)
    figure = Figure()
    figure.subplots().plot([0, strength])
    return figure
sliders(draw, strength=(0.0, 1.0, 0.5))
"""


def test_sliders_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipywidgets.widgets.widget import _instances

    monkeypatch.delenv("IMAML_STILL", raising=False)
    before, drawn = set(_instances), []

    def draw(strength: float) -> Figure:
        drawn.append(strength)
        return Figure()

    sliders(draw, strength=(0.0, 1.0, 0.5))
    (slider,) = [w for key, w in _instances.items() if key not in before and type(w).__name__ == "FloatSlider"]
    slider.value = 0.25
    slider.value = 0.75
    assert drawn == [0.5, 0.25, 0.75]


@pytest.mark.slow  # nbclient waits for ever now and then where outputs go into a widget
def test_sliders_redraw_in_a_live_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    monkeypatch.delenv("IMAML_STILL", raising=False)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (SLIDERS, MOVED)])
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert notebook.cells[1].outputs[0]["text"] == "[0.5, 0.25, 0.75]\n"
    (shown,) = [state["outputs"] for state in client.widget_state.values() if state["_model_name"] == "OutputModel"]
    assert [list(output["data"]) for output in shown] == [["text/plain", "image/png"]]


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
