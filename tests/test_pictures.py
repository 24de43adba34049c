"""Pictures while training: when they are drawn, and that they take little of the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from tiny_data import Tiny
from tiny_learners import smooth_conv

from imaml_lightning.adaptation import Implicit
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.run.callbacks import pictures


class Counted(pictures.Pictures):
    """Draws one empty picture, and remembers the meta-steps after which, and whether dropout and the like were off.

    What is really drawn, the tests of the command line see.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.drawn: list[tuple[int, bool]] = []

    def _figures(self, trainer: Trainer, learner: MetaLearner) -> Iterator[tuple[str, Figure]]:
        self.drawn.append((trainer.global_step, learner.training))
        yield "empty", Figure((1, 1))


@pytest.mark.parametrize(("share", "steps"), [(0.0, [2, 8]), (float("inf"), [2, 4, 6, 8])])
def test_drawn_first_and_last_and_between_while_they_take_a_small_share(
    share: float, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARE", share)
    data = EpisodeDataModule(
        Tiny(str(tmp_path)), way=3, shot=2, query=2, tasks=2, train_batches=2, val_episodes=2, eval_query=2
    )
    drawing = Counted(tmp_path)
    trainer = Trainer(
        max_steps=8,
        accelerator="cpu",
        callbacks=[drawing],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(MetaLearner(smooth_conv(), Implicit(GradientDescent(max_steps=3))), data)
    assert drawing.drawn == [(step, False) for step in steps]
    assert (tmp_path / "empty.png").is_file()
