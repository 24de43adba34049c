"""What a trained learner can do: protocols and their figures, diagnostics, uncertainty, and adaptation to data of one's own."""

from imaml_lightning.evaluation.adaptation_report import AdaptationReport
from imaml_lightning.evaluation.confusion import classes_by_group, confusion
from imaml_lightning.evaluation.diagnostics import adaptation_curve, solves, trace
from imaml_lightning.evaluation.exporting import export
from imaml_lightning.evaluation.loading import load, load_data
from imaml_lightning.evaluation.none_of_these import none_of_these
from imaml_lightning.evaluation.predictor import Predictor, adapt
from imaml_lightning.evaluation.protocols import (
    Calibration,
    Evaluation,
    all_at_once,
    by_way_and_shot,
    calibration,
    compare,
    evaluate,
    extremes,
    one_at_a_time,
)
from imaml_lightning.evaluation.reliability import reliability
from imaml_lightning.evaluation.uncertainty import predictive_variance

__all__ = [
    "AdaptationReport",
    "Calibration",
    "Evaluation",
    "Predictor",
    "adapt",
    "adaptation_curve",
    "all_at_once",
    "by_way_and_shot",
    "calibration",
    "classes_by_group",
    "compare",
    "confusion",
    "evaluate",
    "export",
    "extremes",
    "load",
    "load_data",
    "none_of_these",
    "one_at_a_time",
    "predictive_variance",
    "reliability",
    "solves",
    "trace",
]
