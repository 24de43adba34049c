"""Figures say what their data say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from tiny_learners import implicit, learner, points
from torch import nn

from imaml_lightning.episode import Episode, Examples
from imaml_lightning.evaluation.figures import (
    adaptation_curves,
    calibration_figure,
    confusion_figure,
    contact_sheet,
    landscape,
    learning_curves,
    paths,
    regression_fits,
    side_by_side,
    sliders,
    solve_histograms,
    way_and_shot_figure,
)
from imaml_lightning.evaluation.figures.style import RIGHT, WRONG
from imaml_lightning.problem.solution import Result, Solution


def solution(result: list[int], residual: list[float]) -> Solution:
    codes, sizes = torch.tensor(result), torch.tensor(residual)
    return Solution(torch.zeros(len(codes), 2), codes, codes, sizes, sizes)


def test_contact_sheet_marks_right_and_wrong() -> None:
    x, y = torch.rand(2, 4, 1, 5, 5), torch.tensor([[0, 0, 1, 1]] * 2)
    episode = Episode(Examples(x, y), Examples(x, y))
    after = torch.tensor([[2.0, 0], [0, 2], [0, 2], [0, 2]]).expand(2, 4, 2)
    figure = contact_sheet(episode, torch.zeros(2, 4, 2), after, task=1)
    labels = [text for text in figure.axes[0].texts if "%" in text.get_text()]
    assert [text.get_text() for text in labels] == ["0 → 0   88%", "0 → 1   88%", "0 → 1   88%", "0 → 1   88%"]
    assert [text.get_color() for text in labels] == [RIGHT, WRONG, RIGHT, RIGHT]
    frames = [to_hex(frame.get_edgecolor()) for frame in figure.axes[0].patches]
    assert frames == ["#000000", RIGHT, WRONG, "#000000", RIGHT, RIGHT]
    pictures = [image.get_array() for image in figure.axes[0].images]
    assert [float(picture[0, 0]) for picture in pictures] == pytest.approx(x[1, [0, 0, 1, 2, 2, 3], 0, 0, 0].tolist())


def test_learning_curves_draw_what_a_run_logged_and_name_what_it_did_not(tmp_path: Path) -> None:
    header = "step,train/loss,train/linear_residual,train/linear_converged,train/linear_step_limit,val/loss"
    (tmp_path / "metrics.csv").write_text(f"{header}\n4,2.0,0.1,0.75,0.25,\n4,,,,,3.0\n9,1.0,0.2,0.5,0.5,\n")
    figure = learning_curves(tmp_path)
    accuracy, loss, errors, ended, *_ = figure.axes
    assert [t.get_text() for t in accuracy.texts] == ["not in this run"]
    assert loss.lines[0].get_xydata().tolist() == [[5, 2], [10, 1]]
    assert errors.lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert ended.get_legend_handles_labels()[1] == ["converged", "step limit"]


def test_solve_histograms_count_every_task() -> None:
    linear = solution([Result.CONVERGED, Result.STEP_LIMIT, Result.NONFINITE], [0.0, 0.5, float("nan")])
    figure = solve_histograms(linear, torch.tensor([0.1, 0.2, 0.3]), linear)
    for axes in figure.axes:
        assert sum(patch.get_height() for patch in axes.patches) == 3
    assert figure.axes[1].get_legend_handles_labels()[1] == ["converged: 1", "step limit: 1", "nonfinite: 1"]
    assert len(solve_histograms(linear, torch.ones(3), None).axes) == 1


def test_adaptation_curves_show_the_median() -> None:
    losses = torch.tensor([[3.0, 2.0, 10.0], [1.0, 0.0, 2.0]])
    axes = adaptation_curves([0, 7], {"loss": losses}, trained_steps=4).axes[0]
    median = next(line for line in axes.lines if line.get_label() == "median of 3 tasks")
    assert median.get_xydata().tolist() == [[0, 3], [7, 1]]


def test_regression_fits_are_sorted_by_x() -> None:
    episode = points(features=1)
    built = learner(nn.Sequential(nn.Linear(1, 3), nn.Softplus(), nn.Linear(3, 1)), implicit(steps=3), nn.MSELoss())
    before, after = built.outputs(episode)
    axes = regression_fits(episode, before, after, spread=torch.ones(3, 9)).axes[0]
    x = axes.lines[2].get_xdata()
    assert (x[1:] >= x[:-1]).all()
    assert sorted(axes.lines[2].get_ydata().tolist()) == sorted(after[0, :, 0].tolist())


def test_landscape_marks_the_balance_of_pulls() -> None:
    built = learner(nn.Linear(2, 1, bias=False), implicit(), nn.MSELoss())
    objective = built.objective(points().support)
    phi = built.adapted(points().support).phi.detach()
    _, (axes,) = side_by_side(1)
    landscape(axes, objective, (-2.0, 2.0, -2.0, 2.0), phi[0])
    data, prior = (arrow for arrow in axes.collections if hasattr(arrow, "U"))
    assert [*data.U, *data.V] == pytest.approx([*-prior.U, *-prior.V], abs=1e-5)
    paths(axes, {"straight": torch.stack([objective.start()[0], phi[0]])})
    assert axes.lines[-1].get_label() == "straight"


def test_classification_figures() -> None:
    table = {(2, 1): (0.8, 0.1), (5, 1): (0.6, 0.1), (2, 5): (0.9, 0.1), (5, 5): (0.7, 0.1)}
    assert way_and_shot_figure(table).axes[0].get_legend_handles_labels()[1] == ["guessing", "1-shot", "5-shot"]
    half = torch.tensor([0.5])
    assert calibration_figure(half, half, half, 0.25).axes[0].get_title() == "expected calibration error 0.250"
    shares = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    shown = confusion_figure(shares, "ab", "letters").axes[0].images[0].get_array()
    assert shown[0, 1] == pytest.approx(0.1)
    assert shown.mask.diagonal().all()


def test_sliders_are_still_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAML_STILL", "1")
    assert sliders(lambda **options: options, a=(0.0, 1.0, 0.5)) == {"a": 0.5}


def test_a_strength_that_never_changes_gives_its_panel_to_the_steps(tmp_path: Path) -> None:
    header, rows = "step,train/strength,train/inner_steps,train/linear_steps", [(2, 8, 3), (2, 7, 4)]
    for strengths, title in (
        ((2.0, 2.0), "steps of the solves (λ = 2)"),
        ((2.0, 2.5), "strength λ of the regulariser"),
    ):
        lines = [
            f"{i},{strength},{inner},{linear}"
            for i, (strength, (_, inner, linear)) in enumerate(zip(strengths, rows, strict=True))
        ]
        (tmp_path / "metrics.csv").write_text("\n".join([header, *lines]))
        axes = learning_curves(tmp_path).axes[5]
        assert axes.get_title() == title
        drawn = [line.get_ydata().tolist() for line in axes.lines]
        assert drawn == ([[8, 7], [3, 4]] if "steps" in title else [[2.0, 2.5]])


def test_several_features_or_outputs_are_drawn_as_predictions_over_targets() -> None:
    for features, outputs in ((3, 1), (1, 2), (3, 2)):
        x, y, before, after = (torch.randn(2, 5, n) for n in (features, outputs, outputs, outputs))
        y[1, 4] = torch.nan  # padding
        figure = regression_fits(Episode(Examples(x, y), Examples(x, y)), before, after)
        for task, axes in enumerate(figure.axes):
            assert axes.get_xlabel() == "target"
            dots = next(line for line in axes.lines if line.get_label() == "after")
            assert dots.get_xdata().shape == dots.get_ydata().shape == (5 * outputs,)
            assert torch.equal(torch.as_tensor(dots.get_ydata()), after[task].flatten())
