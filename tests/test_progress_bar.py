"""What a run says while it goes on: one line, in 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from imaml_lightning import EpisodeDataModule, MetaLearner
from imaml_lightning.data import Sinusoid
from imaml_lightning.models import MLP
from imaml_lightning.run.callbacks import PlainProgress, ProgressBar
from imaml_lightning.run.callbacks.figures_line import Clock, duration, last_figures

LONGEST = {
    "train/accuracy": 0.93456,
    "train/accuracy_before": 0.21234,
    "val/accuracy": 0.91,
    "train/inner_stationarity": 0.0212,
    "train/linear_residual": 0.00341,
}


class Figures:
    """A trainer's newest figures."""

    def __init__(self, figures: dict[str, float]) -> None:
        self.callback_metrics = {name: torch.tensor(value) for name, value in figures.items()}


def test_the_figures_that_matter() -> None:
    assert last_figures(Figures(LONGEST)) == "accuracy 0.21→0.93 val 0.91  errors 0.021 0.0034"
    loss = {name.replace("accuracy", "loss"): value for name, value in LONGEST.items()}
    assert last_figures(Figures(loss)) == "loss 0.21→0.93 val 0.91  errors 0.021 0.0034"
    assert last_figures(Figures({"val/loss": 0.5})) == "val 0.50"
    assert last_figures(Figures({})) == ""


def test_times() -> None:
    assert [duration(seconds) for seconds in (0.4, 88, 3599.6, 7500)] == ["0:00", "1:28", "1:00:00", "2:05:00"]
    assert Clock().left(0, 10) == Clock().left(3, None) == ""
    assert Clock(100).left(110, 120).endswith(" left")


def fitted(callback: ProgressBar | PlainProgress, folder: Path) -> None:
    data = EpisodeDataModule(Sinusoid(), shot=5, query=5, tasks=2, train_batches=2, val_episodes=4, test_episodes=4)
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        inference_mode=False,
        num_sanity_val_steps=0,
    )
    learner = MetaLearner(MLP(hidden=[4]))
    trainer.fit(learner, data)
    trainer.test(learner, data, verbose=False)


def test_the_bar_is_one_line_of_80_columns(tmp_path: Path) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, legacy_windows=False)
    bar = ProgressBar(console)
    fitted(bar, tmp_path)
    frames = Console(width=400, file=io.StringIO()).render_str(written.getvalue())  # control codes taken out
    assert "4/4" in written.getvalue()
    assert "testing 2/2" in written.getvalue()
    assert "loss" in frames.plain
    assert "errors" in frames.plain
    assert "\x1b[1A\x1b[2K\x1b[1A" not in written.getvalue()  # a second line would be gone back over
    assert bar._line is None  # nothing is left on the screen


def test_the_longest_line_fits() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    bar = ProgressBar(console)
    bar._begin(0)
    assert bar._line is not None
    bar._show(Figures(LONGEST), "", 12000, 20000)  # type: ignore[arg-type]
    lines = [line for line in console.render_lines(bar._line.get_renderable(), pad=False) if line]
    bar._end()
    assert len(lines) == 1
    text = "".join(part.text for part in lines[0])
    assert text.startswith(" 12000/20000 ")
    assert text.rstrip().endswith("left accuracy 0.21→0.93 val 0.91  errors 0.021 0.0034")
    assert len(text) <= 80


def test_a_pipe_gets_a_line_a_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(PlainProgress(), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("meta-step")]
    assert [line.split(",")[0] for line in lines] == ["meta-step 2/4", "meta-step 4/4"]
    assert all("→" in line and "errors" in line and "left" in line for line in lines)
