"""EpisodeDataModule: batches of few-shot tasks for a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from imaml_lightning.data.augment import Augment
from imaml_lightning.data.base import SPLITS, USUAL_WAY, EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.device_bank import DeviceBank
from imaml_lightning.data.network_check import check_network, check_padding
from imaml_lightning.data.picture_features import PictureFeatures
from imaml_lightning.data.sampler import BatchSampler, Draft, EpisodeDataset, EpisodeLoader
from imaml_lightning.data.setting import Setting, named_setting, shots
from imaml_lightning.data.sources.glyphs import Glyphs
from imaml_lightning.episode import Episode, Examples, as_float
from imaml_lightning.errors import UsageError, check_at_least


class EpisodeDataModule(LightningDataModule):
    """N-way K-shot episodes, the same for every number of workers and ranks and after a resume.

    A training epoch is ``train_batches`` new meta-batches; validation and test episodes are fixed. Images reach
    the model as floats from 0 (paper) to 1 (ink), converted on the device.

    Args:
        source: where tasks come from; None means Glyphs, the embedded letters.
        way: classes of a task; None means 5, or as many as the source's tasks have if that is fixed or less. Regression ignores it.
        shot: support examples of a class (of a task in regression); or a range such as 1..9, from which each training batch draws.
        query: query examples of a class (of a task in regression).
        tasks: tasks of a meta-batch, over all ranks together.
        train_batches: meta-batches of a training epoch.
        val_episodes: validation episodes.
        test_episodes: test episodes.
        eval_way: classes in validation and test; None means as in training.
        eval_shot: support examples in validation and test; None means as in training.
        eval_query: query examples in validation and test; None means as in training.
        eval_settings: what test is about in place of eval_way and eval_shot, each with episodes and figures of its own:
            20w1s is 20 ways and 1 shot, 10s is eval_way and 10 shots.
        seed: of the episodes.
        workers: processes that draw training episodes, a rank; 0 draws them in the training process, which is
            mostly fast enough.
        augment: random flips, crops and colours of training images, made on the device; None leaves them as they are.
        on_device: keep the whole bank in the device's memory and gather images there: for GPUs with room for it.

    Raises:
        UsageError: an option makes no sense; raised before any data is touched.
    """

    def __init__(
        self,
        source: EpisodeSource | None = None,
        way: int | None = None,
        shot: int | str = 1,
        query: int = 15,
        tasks: int = 16,
        train_batches: int = 100,
        val_episodes: int = 200,
        test_episodes: int = 1000,
        eval_way: int | None = None,
        eval_shot: int | None = None,
        eval_query: int | None = None,
        eval_settings: Sequence[str] = (),
        seed: int = 0,
        workers: int = 0,
        augment: Augment | None = None,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        eval_query = query if eval_query is None else eval_query
        check_at_least(2, "--data", way=2 if way is None else way, eval_way=2 if eval_way is None else eval_way)
        check_at_least(1, "--data", query=query, eval_query=eval_query, tasks=tasks, train_batches=train_batches)
        check_at_least(1, "--data", val_episodes=val_episodes, test_episodes=test_episodes)
        check_at_least(0, "--data", seed=seed, workers=workers)
        self.source = source if source is not None else Glyphs()
        self.training = Setting(USUAL_WAY if way is None else way, shots("shot", shot), query)
        eval_shots = shots("eval_shot", shot if eval_shot is None else eval_shot)
        if len(eval_shots) > 1:
            raise UsageError(
                f"--data.shot {shot} is a range, and figures are of one number: set --data.eval_shot to the number for "
                "validation and test."
            )
        self._open = way is None, eval_way is None  # what the source may say
        self._named = tuple(eval_settings)
        self._evaluate(self.training.way if eval_way is None else eval_way, eval_shots, eval_query)
        self.tasks, self.train_batches = tasks, train_batches
        self.val_episodes, self.test_episodes = val_episodes, test_episodes
        self.seed, self.workers = seed, workers
        self.augment, self.on_device = augment, on_device
        if on_device and not isinstance(self.source, ClassSource):
            raise UsageError(
                f"--data.on_device needs a bank, which {type(self.source).__name__} has not: leave it out."
            )
        self._bank = DeviceBank(self.source) if on_device and isinstance(self.source, ClassSource) else None
        self.features: PictureFeatures | None = None  # in place of pictures; callbacks.FeatureBank sets it
        self._ready = False

    def prepare_data(self) -> None:
        """Download, or build the bank. One process does it."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the data and see whether it can give such episodes.

        Raises:
            UsageError: it cannot, or the episodes cannot be split over the ranks.
        """
        trainer: Trainer | None = self.trainer
        ranks = trainer.world_size if trainer else 1
        for name in ("tasks", "val_episodes", "test_episodes"):
            if getattr(self, name) % ranks:
                raise UsageError(
                    f"--data.{name} {getattr(self, name)} cannot be split over {ranks} processes; "
                    f"choose a multiple of {ranks}."
                )
        self.source.setup()
        self._follow_source()
        for split in SPLITS:
            self.source.check(split, *self.setting(split).most)
        for name, setting in self.settings.items():
            try:
                self.source.check("test", *setting.most)
            except UsageError as error:
                raise UsageError(f"--data.eval_settings has {name}, and {error}") from error
        if self.augment is not None and len(self.source.shape) != 3:
            raise UsageError(f"--data.augment changes images, and {type(self.source).__name__} has none: leave it out.")
        if trainer is not None and hasattr(trainer.lightning_module, "network"):
            self.check_network(trainer.lightning_module, training=stage in (None, "fit"))
        self._ready = True

    def _evaluate(self, way: int, shots: range, query: int) -> None:
        self.evaluation = Setting(way, shots, query)
        self.settings = {name: named_setting(name, way, query) for name in self._named}

    def _follow_source(self) -> None:
        """The number of ways that the source has, where nobody asked for one."""
        of_training, of_evaluation = self._open
        if of_training:
            self.training = self.training._replace(way=self.source.usual_way())
        if of_evaluation:
            self._evaluate(self.training.way, self.evaluation.shots, self.evaluation.query)

    def check_network(self, learner: LightningModule, training: bool = True) -> None:
        """Refuse a network that does not fit the source, or would take padding for examples. Called after ``setup``."""
        check_network(self.source, self._sizes(), learner)
        self.check_padding(learner, training)

    def check_padding(self, learner: LightningModule, training: bool = False) -> None:
        """Refuse a network that would take padding for examples."""
        self.source.setup()
        check_padding(self.source, self._sizes(), learner, training)

    def _sizes(self) -> list[Setting]:
        return [self.training, self.evaluation, *self.settings.values()]

    def state_dict(self) -> dict[str, Any]:
        """Into the checkpoint: how the source reads raw input, for ``predict``."""
        return {"reading": self.source.reading()}

    def episode(self, split: Split, number: int, epoch: int = 0, tasks: int = 1) -> Episode:
        """Episodes from ``number`` on as the model sees them (images as floats), for pictures and notebooks.

        Prepares the data if need be.
        """
        if not self._ready:
            self.prepare_data()
            self.setup()
        return self._finished(self._dataset(split, by_number=self.on_device)[epoch, range(number, number + tasks)])

    def given(self, split: Split, number: int, epoch: int = 0, tasks: int = 1) -> Episode:
        """As ``episode``, but with features in place of pictures where batches hold them."""
        if self.features is None:
            return self.episode(split, number, epoch, tasks)
        return self._finished(self._dataset(split, by_number=True)[epoch, range(number, number + tasks)])

    def train_dataloader(self) -> EpisodeLoader:
        """``train_batches`` batches, beginning where the trainer's count of batches says."""
        return self._loader("train", self.train_batches * self.tasks, self.workers)

    def val_dataloader(self) -> EpisodeLoader:
        """The fixed validation episodes."""
        return self._loader("val", self.val_episodes)

    def test_dataloader(self) -> EpisodeLoader | dict[str, EpisodeLoader]:
        """The fixed test episodes; by the names of the settings, where there are such."""
        if not self.settings:
            return self.predict_dataloader()
        return {
            name: self._loader("test", self.test_episodes, setting=setting) for name, setting in self.settings.items()
        }

    def predict_dataloader(self) -> EpisodeLoader:
        """The fixed test episodes of ``eval_way`` and ``eval_shot``."""
        return self._loader("test", self.test_episodes)

    def on_after_batch_transfer(self, batch: Episode | Draft, dataloader_idx: int) -> Episode:
        """Images looked up, as floats and augmented, in the trainer's precision."""
        episode = self._finished(batch)
        trainer: Trainer | None = self.trainer
        return trainer.precision_plugin.convert_input(episode) if trainer else episode

    def _finished(self, batch: Episode | Draft) -> Episode:
        if self.features is not None and self.features.takes(batch):
            return self.features.looked_up(batch)
        episode, random = batch if isinstance(batch, Draft) else (batch, None)
        # An episode of ``episode()`` that is moved to a device comes here a second time, finished already.
        if self._bank is not None and not episode.support.x.is_floating_point():
            episode = self._bank.looked_up(episode)
        episode = as_float(episode)
        if self.augment is not None and random is not None:
            parts = zip(episode, random, strict=True)
            episode = Episode(*(Examples(self.augment(e.x, numbers), e.y) for e, numbers in parts))
        return episode

    def setting(self, split: Split) -> Setting:
        """Size of the episodes of a split; in test, ``eval_settings`` go before."""
        return self.training if split == "train" else self.evaluation

    def _dataset(self, split: Split, setting: Setting | None = None, by_number: bool = False) -> EpisodeDataset:
        augment = self.augment if split == "train" else None
        setting = setting or self.setting(split)
        return EpisodeDataset(self.source, split, self.seed, setting, self.tasks, augment, by_number)

    def _loader(self, split: Split, episodes: int, workers: int = 0, setting: Setting | None = None) -> EpisodeLoader:
        trainer: Trainer | None = self.trainer
        sampler = BatchSampler(
            self.tasks,
            episodes,
            rank=trainer.global_rank if trainer else 0,
            ranks=trainer.world_size if trainer else 1,
            start=self._batches_done if split == "train" else lambda: 0,
        )
        pin_memory = trainer is not None and trainer.strategy.root_device.type == "cuda"
        by_number = self.on_device or self.features is not None
        return EpisodeLoader(self._dataset(split, setting, by_number), sampler, workers, pin_memory)

    def _batches_done(self) -> int:
        """Training batches that the trainer has finished, in this run and in those it resumes.

        Lightning restores this count with a checkpoint before it asks for a batch. It is right wherever the
        checkpoint was taken; the count of epochs is not (one taken after the last batch of an epoch, or under
        ``max_steps``, may resume with an epoch passed over).
        """
        trainer: Trainer | None = self.trainer
        if trainer is None or trainer.overfit_batches:  # type: ignore[attr-defined]  # the same batches again
            return 0
        return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
