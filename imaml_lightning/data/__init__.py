"""Where tasks come from: sources, banks and the LightningDataModule."""

from imaml_lightning.data.augment import Augment
from imaml_lightning.data.bank import BankClass, ClassBank
from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.datamodule import EpisodeDataModule
from imaml_lightning.data.sources.benchmark import Benchmark
from imaml_lightning.data.sources.class_arrays import ClassTable, ClassTensors
from imaml_lightning.data.sources.glyphs import Glyphs
from imaml_lightning.data.sources.image_folder import ImageFolder
from imaml_lightning.data.sources.omniglot import Omniglot
from imaml_lightning.data.sources.omniglot_challenge import OmniglotChallenge
from imaml_lightning.data.sources.sinusoid import Harmonic, RandomFunctions, Sinusoid, SinusoidAndLine
from imaml_lightning.data.sources.tasks import Tasks, TaskTable

__all__ = [
    "SPLITS",
    "Augment",
    "BankClass",
    "Benchmark",
    "ClassBank",
    "ClassSource",
    "ClassTable",
    "ClassTensors",
    "EpisodeDataModule",
    "EpisodeSource",
    "Glyphs",
    "Harmonic",
    "ImageFolder",
    "Omniglot",
    "OmniglotChallenge",
    "RandomFunctions",
    "Sinusoid",
    "SinusoidAndLine",
    "Split",
    "TaskTable",
    "Tasks",
]
