"""Where tasks come from: sources, banks and the LightningDataModule."""

from imaml_lightning.data.bank import BankClass, ClassBank
from imaml_lightning.data.base import SPLITS, EpisodeSource, Split
from imaml_lightning.data.class_source import ClassSource
from imaml_lightning.data.datamodule import EpisodeDataModule, as_float
from imaml_lightning.data.glyphs import Glyphs
from imaml_lightning.data.omniglot import Omniglot
from imaml_lightning.data.sinusoid import Sinusoid

__all__ = [
    "SPLITS",
    "BankClass",
    "ClassBank",
    "ClassSource",
    "EpisodeDataModule",
    "EpisodeSource",
    "Glyphs",
    "Omniglot",
    "Sinusoid",
    "Split",
    "as_float",
]
