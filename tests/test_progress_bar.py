"""The terminal: four numbers while it trains."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from imaml_lightning.run.callbacks import ProgressBar

ERRORS = {"train/inner_stationarity": torch.tensor(0.0512), "train/linear_residual": torch.tensor(0.00634)}


@pytest.mark.parametrize("score", ["accuracy", "loss"])
def test_four_numbers(score: str) -> None:
    logged = {"train/loss": torch.tensor(2.0), f"train/{score}": torch.tensor(0.75), f"val/{score}": torch.tensor(0.5)}
    trainer = SimpleNamespace(callback_metrics=logged | ERRORS | {"train/seconds": torch.tensor(1.0)})
    shown = ProgressBar().get_metrics(trainer, None)
    assert shown == {score: "0.75", "val": "0.5", "inner error": "0.0512", "linear error": "0.00634"}
