"""Waiting, under a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from imaml_lightning.run.callbacks import waiting
from imaml_lightning.run.callbacks.waiting import Waiting


def test_share_between_steps_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: clock.now)
    logged: list[tuple[str, float]] = []
    learner = SimpleNamespace(log=lambda name, value: logged.append((name, value)))
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=2)
    callback = Waiting()

    def step(wait: float, work: float) -> None:
        clock.now += wait
        callback.on_train_batch_start(trainer, learner, None, 0)
        clock.now += work
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, learner, None, None, 0)

    step(5.0, 3.0)  # what lies before the first step is no wait between steps
    step(1.0, 1.0)
    assert logged == [("train/waiting", pytest.approx(1 / 5))]
    callback.on_validation_end(trainer, learner)
    step(7.0, 1.0)  # a validation
    step(0.0, 3.0)
    assert logged[1:] == [("train/waiting", 0.0)]
