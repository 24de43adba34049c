"""Feature bank: with a frozen body each picture passes it once, and training is what it would be without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from own_bodies import Convolutions, head_only
from tiny_files import write_classes

from imaml_lightning import EpisodeDataModule, MetaLearner, UsageError
from imaml_lightning.data import Glyphs, ImageFolder
from imaml_lightning.data.augment import Augment
from imaml_lightning.evaluation import evaluate
from imaml_lightning.models import Backbone, Conv4
from imaml_lightning.run.callbacks import FeatureBank
from imaml_lightning.run.callbacks.feature_bank import keep_features

CLASSES, PICTURES = 12, 5
LOOKED = 4  # blank pictures, two by fit and two by test, to see whether the network takes them


def learner(seed: int = 0) -> MetaLearner:
    torch.manual_seed(seed)
    return head_only(Backbone(body=Convolutions(), without="fc", pixels=16, frozen=True))


def data(root: Path, **options) -> EpisodeDataModule:
    if not (root / "photos").exists():
        write_classes(root / "photos", CLASSES, PICTURES)
    source = ImageFolder(str(root / "photos"), size=16, cache=str(root / "cache"), fractions=(0.5, 0.25, 0.25))
    return EpisodeDataModule(
        source, way=3, shot=1, query=3, tasks=2, train_batches=3, val_episodes=4, test_episodes=4, **options
    )


def fit(model: MetaLearner, episodes: EpisodeDataModule, *callbacks: FeatureBank) -> tuple[int, dict[str, float]]:
    """How many pictures passed the body, and what a test says after three meta-steps."""
    passed: list[int] = []
    hook = model.network.body.network.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    trainer = Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, inference_mode=False, use_distributed_sampler=False,
                      num_sanity_val_steps=0, callbacks=[*callbacks])  # fmt: skip
    trainer.fit(model, episodes)
    figures = trainer.test(model, episodes, verbose=False)[0]
    hook.remove()
    return sum(passed), dict(figures)


def test_each_picture_passes_once_and_training_is_the_same(tmp_path: Path) -> None:
    one, other = learner(), learner()
    without, figures = fit(one, data(tmp_path))
    passed, kept = fit(other, data(tmp_path), FeatureBank())
    assert passed == CLASSES * PICTURES + LOOKED < without
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for name in ("test/loss", "test/accuracy_inductive"):
        assert kept[name] == pytest.approx(figures[name], rel=1e-4)
    assert fit(learner(), data(tmp_path), FeatureBank())[0] == LOOKED  # another training finds the file
    assert fit(learner(seed=1), data(tmp_path), FeatureBank())[0] == passed  # that of other weights is another one


def test_pictures_are_still_seen(tmp_path: Path) -> None:
    model, episodes = learner(), data(tmp_path)
    episodes.features = keep_features(model, episodes)
    seen, given = episodes.episode("val", 0, tasks=2), episodes.given("val", 0, tasks=2)
    assert seen.query.x.shape == (2, 9, 3, 16, 16)
    for part, pictures in zip(given, seen, strict=True):
        torch.testing.assert_close(part.x.flatten(0, 1), model.network.body(pictures.x.flatten(0, 1)).detach())
        assert torch.equal(part.y, pictures.y)
    for before, after in zip(model.outputs(seen), model.outputs(given), strict=True):
        torch.testing.assert_close(before, after)
    plain = evaluate(model, data(tmp_path), episodes=4).outputs
    torch.testing.assert_close(evaluate(model, episodes, episodes=4).outputs, plain)


def test_views_are_of_changed_pictures_in_training_alone(tmp_path: Path) -> None:
    model, augment = learner(), Augment(flip=False, colour=0.9)
    episodes = data(tmp_path, augment=augment)
    episodes.features = keep_features(model, episodes, views=3)
    bank = episodes.source.bank
    train = sum(int(bank.counts[number]) for number in bank.splits["train"])
    drawn = {tuple(row) for i in range(40) for row in episodes.given("train", i).query.x[0].tolist()}
    assert 2 * train < len(drawn) <= 3 * train  # of some pictures all three were drawn
    fixed = {tuple(row) for i in range(40) for row in episodes.given("val", i).query.x[0].tolist()}
    assert len(fixed) <= sum(int(bank.counts[number]) for number in bank.splits["val"])
    again = data(tmp_path, augment=augment)
    again.features = keep_features(model, again, views=3)
    assert torch.equal(again.given("train", 7).support.x, episodes.given("train", 7).support.x)


def test_it_is_refused_where_nothing_is_frozen() -> None:
    model, episodes = MetaLearner(Conv4(filters=4)), EpisodeDataModule(Glyphs(), query=1)
    with pytest.raises(UsageError, match="needs a frozen Backbone"):
        fit_without_body(model, episodes)


def fit_without_body(model: MetaLearner, episodes: EpisodeDataModule) -> None:
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=[FeatureBank()])  # fmt: skip
    trainer.fit(model, episodes)
