"""Callbacks for whoever wants them (Compiled, CUDAGraphs, FeatureBank, MovingAverage, StartFrom), and the command line's own."""

from imaml_lightning.run.callbacks.compiled import Compiled
from imaml_lightning.run.callbacks.cuda_graphs import CUDAGraphs
from imaml_lightning.run.callbacks.feature_bank import FeatureBank
from imaml_lightning.run.callbacks.keep_last import KeepLast
from imaml_lightning.run.callbacks.moving_average import MovingAverage
from imaml_lightning.run.callbacks.pictures import Pictures
from imaml_lightning.run.callbacks.plain_progress import PlainProgress
from imaml_lightning.run.callbacks.progress_bar import ProgressBar
from imaml_lightning.run.callbacks.record_run import RecordRun
from imaml_lightning.run.callbacks.start_from import StartFrom
from imaml_lightning.run.callbacks.waiting import Waiting

__all__ = [
    "CUDAGraphs",
    "Compiled",
    "FeatureBank",
    "KeepLast",
    "MovingAverage",
    "Pictures",
    "PlainProgress",
    "ProgressBar",
    "RecordRun",
    "StartFrom",
    "Waiting",
]
