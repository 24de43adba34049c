"""Callbacks of the command line."""

from imaml_lightning.callbacks.pictures import Pictures
from imaml_lightning.callbacks.plain_progress import PlainProgress
from imaml_lightning.callbacks.record_config import RecordConfig

__all__ = ["Pictures", "PlainProgress", "RecordConfig"]
