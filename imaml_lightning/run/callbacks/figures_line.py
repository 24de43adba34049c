"""What a run is doing, in the few words that a line has room for."""

from __future__ import annotations

import math
import time

from lightning.pytorch import Trainer


def last_figures(trainer: Trainer) -> str:
    """``accuracy 0.61→0.93 val 0.91  errors 0.021 0.0034``: before and after adaptation in training, after it in
    validation, and the two errors of the meta-gradient, ‖∇G‖ / ‖∇L‖ and ‖Au − v‖ / ‖v‖; as far as they are known."""
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    score = "accuracy" if {"train/accuracy", "val/accuracy"} & figures.keys() else "loss"
    words = []
    if f"train/{score}" in figures:
        words.append(f"{score} {figures.get(f'train/{score}_before', math.nan):.2f}→{figures[f'train/{score}']:.2f}")
    if f"val/{score}" in figures:
        words.append(f"val {figures[f'val/{score}']:.2f}")
    errors = [figures[name] for name in ("train/inner_stationarity", "train/linear_residual") if name in figures]
    if errors:
        words.append(f" errors {' '.join(f'{error:.2g}' for error in errors)}")
    return " ".join(words)


def meta_steps(trainer: Trainer) -> int | None:
    """How many the run will have taken at its end; None if nobody can know."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    known = epochs is not None and epochs > 0 and math.isfinite(batches)
    return int(epochs * batches) if known else None  # type: ignore[operator]


class Clock:
    """Time since it was made, and time left at the pace so far."""

    def __init__(self, done: int = 0) -> None:
        self._began, self._done = time.monotonic(), done

    def passed(self) -> str:
        return duration(time.monotonic() - self._began)

    def left(self, done: int, total: int | None) -> str:
        """``1:28 left``; nothing where it is not known."""
        if total is None or done <= self._done:
            return ""
        pace = (time.monotonic() - self._began) / (done - self._done)
        return f"{duration(pace * max(0, total - done))} left"


def duration(seconds: float) -> str:
    """``1:28``, or ``2:05:00`` from an hour on."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
