"""imaml_lightning: implicit MAML as a PyTorch Lightning application.

Read in this order: episode, parameters, objective, solution; then adaptation (implicit.py is the method),
inner and linear (one solver a file), curvature, proximal; optimizers (differentiable) for the unrolled members; then meta_learner, data and cli.
"""

from imaml_lightning import compat

compat.repair_torchvision()  # before anything imports lightning or torchmetrics, which look for torchvision

from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, Unrolled  # noqa: E402
from imaml_lightning.data import EpisodeDataModule, EpisodeSource  # noqa: E402
from imaml_lightning.episode import Episode, Examples  # noqa: E402
from imaml_lightning.errors import UsageError  # noqa: E402
from imaml_lightning.inner import InnerSolver  # noqa: E402
from imaml_lightning.linear import LinearSolver  # noqa: E402
from imaml_lightning.meta_learner import MetaLearner  # noqa: E402
from imaml_lightning.objective import InnerObjective  # noqa: E402
from imaml_lightning.parameters import FlatNetwork  # noqa: E402
from imaml_lightning.predictor import AdaptationReport, Predictor, adapt, load  # noqa: E402
from imaml_lightning.proximal import ProximalTerm  # noqa: E402
from imaml_lightning.solution import Result, Solution  # noqa: E402

__all__ = [
    "Adaptation",
    "AdaptationReport",
    "Episode",
    "EpisodeDataModule",
    "EpisodeSource",
    "Examples",
    "FirstOrder",
    "FlatNetwork",
    "Implicit",
    "InnerObjective",
    "InnerSolver",
    "LinearSolver",
    "MetaLearner",
    "Predictor",
    "ProximalTerm",
    "Result",
    "Solution",
    "Unrolled",
    "UsageError",
    "adapt",
    "load",
]
