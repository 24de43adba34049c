"""imaml_lightning: implicit MAML as a PyTorch Lightning application.

The rooms, in the order in which to read them; each imports only those before it:

episode, errors   what a batch of tasks is; what goes wrong
problem           the inner problem G(φ, θ) and its derivatives
linear, inner     solvers, one a file; optimizers: differentiable ones, for the unrolled members
adaptation        the map θ ↦ φ, one member of the family a file; implicit.py is the method
models, data      networks; where episodes come from
learner           the LightningModule
evaluation        what a trained learner can do, and figures
run, cli          a run's folder, loggers and callbacks; the command line
"""

from imaml_lightning import _compat

_compat.repair_torchvision()  # before anything imports lightning or torchmetrics, which look for torchvision

from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, Unrolled  # noqa: E402
from imaml_lightning.data import EpisodeDataModule, EpisodeSource  # noqa: E402
from imaml_lightning.episode import Episode, Examples  # noqa: E402
from imaml_lightning.errors import UsageError  # noqa: E402
from imaml_lightning.evaluation.predictor import AdaptationReport, Predictor, adapt, load  # noqa: E402
from imaml_lightning.inner import InnerSolver  # noqa: E402
from imaml_lightning.learner.meta_learner import MetaLearner  # noqa: E402
from imaml_lightning.linear import LinearSolver  # noqa: E402
from imaml_lightning.problem.network import FlatNetwork  # noqa: E402
from imaml_lightning.problem.objective import InnerObjective  # noqa: E402
from imaml_lightning.problem.proximal import ProximalTerm  # noqa: E402
from imaml_lightning.problem.solution import Result, Solution  # noqa: E402

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
