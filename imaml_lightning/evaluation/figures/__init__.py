"""Pictures, one file for each; all are Matplotlib figures that the caller shows or saves.

``python -m imaml_lightning.evaluation.figures RUN_FOLDER`` draws the curves of a run's metrics.csv anew.
"""

from imaml_lightning.evaluation.figures.adaptation import adaptation_curves
from imaml_lightning.evaluation.figures.classification import calibration_figure, confusion_figure, way_and_shot_figure
from imaml_lightning.evaluation.figures.contact_sheet import contact_sheet
from imaml_lightning.evaluation.figures.convergence import convergence
from imaml_lightning.evaluation.figures.landscape import landscape, paths, side_by_side
from imaml_lightning.evaluation.figures.learning import learning_curves
from imaml_lightning.evaluation.figures.regression import regression_fits
from imaml_lightning.evaluation.figures.sliders import sliders
from imaml_lightning.evaluation.figures.solves import solve_histograms

__all__ = [
    "adaptation_curves",
    "calibration_figure",
    "confusion_figure",
    "contact_sheet",
    "convergence",
    "landscape",
    "learning_curves",
    "paths",
    "regression_fits",
    "side_by_side",
    "sliders",
    "solve_histograms",
    "way_and_shot_figure",
]
