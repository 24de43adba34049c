"""EpisodeDataModule: the same episodes for every number of workers and ranks, and after a resume."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_data import Tiny

from imaml_lightning.data import EpisodeDataModule, EpisodeSource, Glyphs, Sinusoid
from imaml_lightning.data.sampler import BatchSampler
from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError
from imaml_lightning.learner import MetaLearner
from imaml_lightning.models import AnyWay

BATCHES, TASKS = 4, 6
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(str(tmp_path_factory.mktemp("bank")))


def module(source: EpisodeSource, **options: Any) -> EpisodeDataModule:
    defaults = {"way": 3, "shot": 1, "query": 2, "tasks": TASKS, "train_batches": BATCHES, "val_episodes": 15}
    made = EpisodeDataModule(source, **{**defaults, "test_episodes": 12, **options})
    made.prepare_data()
    made.setup()
    return made


def same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True))


# --- what an episode depends on ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [Sinusoid, None])
def test_batches_do_not_depend_on_workers(source: Tiny, make: type | None) -> None:
    data = make() if make else source
    alone, helped = (list(module(data, workers=n).train_dataloader()) for n in (0, 2))
    assert len(alone) == len(helped) == BATCHES
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert not any(same(a, b) for a, b in pairwise(alone))


def test_workers_serve_a_second_epoch(source: Tiny) -> None:
    loader = module(source, workers=2).train_dataloader()
    assert all(same(a, b) for a, b in zip(list(loader), list(loader), strict=True))


@pytest.mark.parametrize("ranks", [2, 3, 6])
@pytest.mark.parametrize("episodes", [6 * BATCHES, 24 + 6 // 2 * 2])
def test_ranks_in_order_give_the_batches_of_one_process(ranks: int, episodes: int) -> None:
    def batches(rank: int, ranks: int) -> list[tuple[int, list[int]]]:
        sampler = BatchSampler(6, episodes, rank, ranks, lambda: 3)
        return [(epoch, list(numbers)) for epoch, numbers in sampler]

    parts = [batches(rank, ranks) for rank in range(ranks)]
    joined = [(b[0][0], [n for _, numbers in b for n in numbers]) for b in zip(*parts, strict=True)]
    assert joined == batches(0, 1)


def test_validation_batches_hold_every_episode_once() -> None:
    for ranks in (1, 2, 4):
        seen = [n for r in range(ranks) for _, b in BatchSampler(8, 20, r, ranks, lambda: 0) for n in b]
        assert sorted(seen) == list(range(20))


def test_seed_split_epoch_and_number_each_matter(source: Tiny) -> None:
    data = Sinusoid()
    one = module(data).episode("train", 3)
    assert same(one, module(data, tasks=2, train_batches=9).episode("train", 3))
    for other in (
        module(data, seed=1).episode("train", 3),
        module(data).episode("val", 3),
        module(data).episode("train", 4),
        module(data).episode("train", 3, epoch=1),
    ):
        assert not same(one, other)


def test_episode_is_the_one_of_the_batch(source: Tiny) -> None:
    data = module(source)
    batch = data.on_after_batch_transfer(list(data.train_dataloader())[2], 0)
    assert same(next(iter(list(batch.chunks(1))[1:2])), data.episode("train", 2 * TASKS + 1))


def test_evaluation_is_fixed_and_has_its_own_query_count(source: Tiny) -> None:
    data = module(source, eval_query=5)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert [batch.tasks for batch in first] == [6, 6, 3]
    assert first[0].query.x.shape[1] == 3 * 5
    assert next(iter(data.train_dataloader())).query.x.shape[1] == 3 * 2
    assert sum(batch.tasks for batch in data.predict_dataloader()) == 12


def shots_of(batches: list[Episode], way: int = 3) -> list[int]:
    """The shot of each batch, the same for every class of every task."""
    for batch in batches:
        counts = [torch.bincount(y, minlength=way) for y in batch.support.y]
        assert all(torch.equal(one, torch.full((way,), int(counts[0][0]))) for one in counts)
    return [batch.support.x.shape[1] // way for batch in batches]


def test_training_and_evaluation_have_sizes_of_their_own(source: Tiny) -> None:
    data = module(source, way=5, shot=2, eval_way=3, eval_shot=4, eval_query=1)
    assert shots_of(list(data.train_dataloader()), 5) == [2] * BATCHES
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        batches = list(loader)
        assert shots_of(batches) == [4] * len(batches)
        assert all(batch.query.y.shape[1] == 3 for batch in batches)
        alone = module(source, way=3, shot=4, query=1)
        assert same(data.episode(split, 1), alone.episode(split, 1))


def test_a_range_of_shots_is_drawn_once_a_batch(source: Tiny) -> None:
    options = {"shot": "1..4", "eval_shot": 2, "train_batches": 60}
    batches = list(module(source, **options).train_dataloader())
    counts = torch.bincount(torch.tensor(shots_of(batches)), minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() >= 6  # of 15 expected
    helped = list(module(source, **options, workers=2).train_dataloader())
    assert all(same(a, b) for a, b in zip(batches, helped, strict=True))
    assert shots_of(list(module(source, **options, seed=1).train_dataloader())) != shots_of(batches)


def test_an_episode_has_the_shot_of_its_batch_on_every_rank(source: Tiny) -> None:
    data = module(source, shot="1..4", eval_shot=2)
    dataset = data.train_dataloader().dataset
    for number, whole in enumerate(data.train_dataloader()):
        halves = [dataset[0, range(6 * number + 3 * rank, 6 * number + 3 * rank + 3)] for rank in (0, 1)]
        assert same(Episode.stack(halves), whole)
        first = next(iter(data.on_after_batch_transfer(whole, 0).chunks(1)))
        assert same(data.episode("train", 6 * number), first)
    with pytest.raises(UsageError, match="episodes 5 to 6 of train lie in several batches of 6"):
        data.episode("train", 5, tasks=2)


def test_shots_of_regression_are_drawn_as_well() -> None:
    loader = module(Sinusoid(), shot="5..10", eval_shot=10, train_batches=30).train_dataloader()
    assert {batch.support.x.shape[1] for batch in loader} == set(range(5, 11))


def test_settings_test_the_episodes_of_a_module_of_that_size(source: Tiny) -> None:
    data = module(source, way=5, query=1, eval_way=2, eval_query=2, eval_settings=["3w1s", "6w2s", "3s"])
    loaders = data.test_dataloader()
    assert list(loaders) == ["3w1s", "6w2s", "3s"]
    for (way, shot), loader in zip(((3, 1), (6, 2), (2, 3)), loaders.values(), strict=True):
        alone = module(source, way=way, shot=shot).test_dataloader()
        assert all(same(a, b) for a, b in zip(loader, alone, strict=True))
    assert next(iter(data.predict_dataloader())).support.x.shape[1] == 2


def test_loading_leaves_torchs_random_numbers_alone(source: Tiny) -> None:
    before = torch.get_rng_state()
    list(module(source).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_images_become_floats_from_0_to_1(source: Tiny) -> None:
    data = module(source)
    raw = next(iter(data.train_dataloader()))
    x = data.on_after_batch_transfer(raw, 0).support.x
    assert x.dtype == torch.float32
    assert torch.equal(x, raw.support.x.float() / 255)


def test_data_can_go_to_spawned_workers(source: Tiny) -> None:
    data = module(source)
    copy = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert same(copy[0, [1, 2]], data.train_dataloader().dataset[0, [1, 2]])


# --- under a Trainer --------------------------------------------------------------------------------


class Recorder(LightningModule):
    """Learns nothing; remembers the training and validation batches it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.seen: list[Episode] = []
        self.seen_val: list[Episode] = []

    def training_step(self, batch: Episode, batch_idx: int) -> None:
        self.seen.append(batch)
        self.optimizers().step()

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        self.seen_val.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(
    source: EpisodeSource, folder: Path, stop: dict[str, int], ckpt: Path | None = None, **options: Any
) -> Recorder:
    model = options.pop("model", None) or Recorder()
    trainer = options.pop("trainer", {})
    keep = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **options.pop("save", {"every_n_epochs": 1}))
    trainer = Trainer(callbacks=[keep], **{**QUIET, **stop, **trainer})
    trainer.fit(model, datamodule=module(source, **options), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return model


EVERY_STEP = {"every_n_train_steps": 1}
AFTER_VALIDATION = {"every_n_epochs": 1, "save_on_train_epoch_end": False}
END_OF_EPOCH = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
EPOCHS, STEPS = {"max_epochs": 3}, {"max_steps": 3 * BATCHES, "max_epochs": -1}


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Using ModelCheckpoint with manual")
@pytest.mark.parametrize(
    ("save", "stop", "workers"),
    [
        (EVERY_STEP, EPOCHS, 0),
        (EVERY_STEP, EPOCHS, 1),
        (EVERY_STEP, STEPS, 0),
        (AFTER_VALIDATION, EPOCHS, 0),
        (AFTER_VALIDATION, STEPS, 0),
        (END_OF_EPOCH, EPOCHS, 0),
        (END_OF_EPOCH, STEPS, 0),
    ],
)
def test_resumed_run_sees_the_same_episodes(source, tmp_path: Path, save, stop, workers: int) -> None:
    whole = fit(source, tmp_path, stop, save=save, workers=workers).seen
    assert len(whole) == 3 * BATCHES
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for path in checkpoints[:: workers * 4 + 1]:
        done = int(path.stem.split("=")[1])
        rest = fit(source, tmp_path, stop, ckpt=path, save=save, workers=workers).seen
        assert len(rest) == len(whole) - done, path.stem
        assert all(same(a, b) for a, b in zip(whole[done:], rest, strict=True)), path.stem


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("stop", [EPOCHS, STEPS])
@pytest.mark.parametrize("number", [0, 1, BATCHES - 1, BATCHES, BATCHES + 2])
def test_batch_that_was_interrupted_comes_again(source: Tiny, tmp_path: Path, number: int, stop) -> None:
    class Interrupted(Recorder):
        def training_step(self, batch: Episode, batch_idx: int) -> None:
            if len(self.seen) == number:
                self.trainer.save_checkpoint(tmp_path / "cut.ckpt")
            super().training_step(batch, batch_idx)

    whole = fit(source, tmp_path, stop, model=Interrupted()).seen
    rest = fit(source, tmp_path, stop, ckpt=tmp_path / "cut.ckpt").seen
    assert len(rest) == len(whole) - number
    assert all(same(a, b) for a, b in zip(whole[number:], rest, strict=True))


def test_short_epochs_and_validations_follow_on(source: Tiny, tmp_path: Path) -> None:
    """Epochs cut by ``limit_train_batches`` continue the same stream, and validation repeats its episodes."""
    model = fit(source, tmp_path, {"max_epochs": 4}, trainer={"limit_train_batches": 2, "limit_val_batches": 1})
    whole = [*module(source).train_dataloader()]
    assert all(same(a, module(source).on_after_batch_transfer(b, 0)) for a, b in zip(model.seen, whole, strict=False))
    assert len(model.seen) == 8
    assert all(same(model.seen_val[0], other) for other in model.seen_val)


def test_overfitting_repeats_its_batches(source: Tiny, tmp_path: Path) -> None:
    seen = fit(source, tmp_path, {"max_epochs": 2}, trainer={"overfit_batches": 2}).seen
    assert len(seen) == 4
    assert same(seen[0], seen[2])
    assert not same(seen[0], seen[1])


def test_double_precision_gets_doubles(source: Tiny, tmp_path: Path) -> None:
    seen = fit(source, tmp_path, {"max_steps": 1}, trainer={"precision": "64-true"}).seen
    assert seen[0].support.x.dtype == torch.float64


# --- what cannot be had -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("way", 1), ("shot", 0), ("shot", "0..3"), ("eval_way", 1), ("eval_shot", 0), ("query", 0), ("tasks", 0), ("train_batches", 0), ("val_episodes", -1),
        ("test_episodes", 0), ("eval_query", 0), ("seed", -1), ("workers", -1),
    ],
)  # fmt: skip
def test_option_without_sense_is_named_before_data_is_touched(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"{option} must be at least \d, got .*set --data\.{option}"):
        EpisodeDataModule(Tiny(str(tmp_path / "none")), **{option: value})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"way": 7}, "--data.way 7 .* test, 6"),
        ({"eval_way": 8}, r"--data.way 8 \(or eval_way\) .* val, 7"),
        ({"eval_settings": ["3w1s", "7w1s"]}, "--data.eval_settings has 7w1s, and .* test, 6"),
        ({"eval_settings": ["3w7s"]}, r"--data.eval_settings has 3w7s, and .*shot 7 .* plus 2 query examples \(test\)"),
        ({"shot": "1..7", "eval_shot": 1}, r"--data.shot 7 plus 2 query examples \(train\)"),
        ({"way": 20}, "--data.way 20 .* train, 12"),
        ({"shot": 5, "query": 4}, r"--data.shot 5 plus 4 query examples \(train\)"),
        (
            {"shot": 5, "eval_query": 9},
            r"--data.shot 5 \(or eval_shot\) plus 9 query examples \(val\) .* --data.eval_query",
        ),
    ],
)
def test_episodes_that_the_data_cannot_give_are_refused(source: Tiny, options, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        module(source, **options)


@pytest.mark.parametrize("option", ["tasks", "val_episodes", "test_episodes"])
def test_episodes_that_cannot_be_split_over_the_ranks_are_refused(source: Tiny, option: str) -> None:
    class FourRanks:
        world_size, global_rank = 4, 0

    data = EpisodeDataModule(source, way=3, query=2, **{"tasks": 8, "val_episodes": 8, "test_episodes": 8, option: 6})
    data.trainer = FourRanks()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=f"--data.{option} 6 cannot be split over 4 processes"):
        data.setup()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shot": "many"}, "--data.shot is a number, or a range such as 1..9, but is 'many'"),
        ({"shot": "3..1"}, "--data.shot is a number, or a range such as 1..9, but is '3..1'"),
        ({"shot": "1..3"}, "--data.shot 1..3 is a range, .* set --data.eval_shot"),
        ({"eval_settings": ["5way"]}, "--data.eval_settings has '5way': write 20w1s"),
        ({"eval_settings": ["1w5s"]}, "--data.eval_settings has '1w5s'"),
        ({"eval_settings": ["5w0s"]}, "--data.eval_settings has '5w0s'"),
    ],
)
def test_sizes_that_are_none_are_refused_before_data_is_touched(tmp_path: Path, options, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        EpisodeDataModule(Tiny(str(tmp_path / "none")), **options)
    assert not (tmp_path / "none").exists()


def test_a_network_of_fixed_outputs_has_to_fit_every_stage(source: Tiny) -> None:
    def learner(head: torch.nn.Module) -> MetaLearner:
        return MetaLearner(torch.nn.Sequential(torch.nn.Flatten(), head))

    fixed, free = learner(torch.nn.Linear(16, 5)), learner(AnyWay(16))
    module(source, way=5).check_network(fixed)
    for other in ({"way": 4, "eval_way": 5}, {"eval_way": 3}, {"eval_settings": ["5w1s", "3w1s"]}):
        data = module(source, **{"way": 5, **other})
        with pytest.raises(UsageError, match=r"Sequential has 5 outputs, but a task has [34] classes"):
            data.check_network(fixed)
        data.check_network(free)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_one_training_of_many_ways_is_tested_with_fewer(source: Tiny) -> None:
    options = {"way": 9, "shot": "1..3", "query": 1, "eval_way": 5, "eval_shot": 2, "eval_query": 2}
    data = module(source, **options, val_episodes=6, eval_settings=["3w1s", "6w2s"])
    learner = MetaLearner(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), AnyWay(8)), adapt=["2.*"])
    trainer = Trainer(max_steps=BATCHES, enable_checkpointing=False, **QUIET)
    trainer.fit(learner, datamodule=data)
    [figures, _] = trainer.test(learner, data, verbose=False)
    for setting in ("3w1s", "6w2s"):
        assert math.isfinite(figures[f"test/{setting}/loss"])
        assert 0 <= figures[f"test/{setting}/accuracy_inductive"] <= 1


def test_default_source_is_glyphs() -> None:
    assert isinstance(EpisodeDataModule().source, Glyphs)
