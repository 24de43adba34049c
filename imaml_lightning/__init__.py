"""imaml_lightning: implicit MAML as a PyTorch Lightning application.

The rooms, in the order in which to read them; each imports only those before it:

episode, errors   what a batch of tasks is; what goes wrong
problem           the inner problem G(φ, θ) and its derivatives
linear, inner     solvers, one a file; optimizers: differentiable ones, for the unrolled members
implicit          argmin and root of any function, differentiable: the implicit layer
adaptation        the map θ ↦ φ, one member of the family a file; implicit.py is the method
models, data      networks; where episodes come from
learner           the LightningModule
evaluation        what a trained learner can do, and figures
run, cli          a run's folder, loggers and callbacks; the command line
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imaml_lightning import _compat

__version__ = "0.1.0"

_compat.repair_torchvision()  # whenever lightning, torchmetrics or anything else comes to import it

if TYPE_CHECKING:
    from imaml_lightning.adaptation import Adaptation, FirstOrder, Implicit, Unrolled
    from imaml_lightning.adaptation.argmin import Report, argmin, root
    from imaml_lightning.data import EpisodeDataModule, EpisodeSource
    from imaml_lightning.episode import Episode, Examples
    from imaml_lightning.errors import UsageError
    from imaml_lightning.evaluation.adaptation_report import AdaptationReport
    from imaml_lightning.evaluation.loading import load
    from imaml_lightning.evaluation.predictor import Predictor, adapt
    from imaml_lightning.inner import InnerSolver
    from imaml_lightning.learner.meta_learner import MetaLearner
    from imaml_lightning.linear import LinearSolver
    from imaml_lightning.problem.network import FlatNetwork
    from imaml_lightning.problem.objective import InnerObjective
    from imaml_lightning.problem.proximal import ProximalTerm
    from imaml_lightning.problem.solution import Result, Solution

#: Where the names below are. They are imported when they are asked for, so that --help need not wait for torch.
_HOMES = {
    "imaml_lightning.adaptation": ["Adaptation", "FirstOrder", "Implicit", "Unrolled"],
    "imaml_lightning.data": ["EpisodeDataModule", "EpisodeSource"],
    "imaml_lightning.episode": ["Episode", "Examples"],
    "imaml_lightning.errors": ["UsageError"],
    "imaml_lightning.evaluation.adaptation_report": ["AdaptationReport"],
    "imaml_lightning.evaluation.loading": ["load"],
    "imaml_lightning.evaluation.predictor": ["Predictor", "adapt"],
    "imaml_lightning.adaptation.argmin": ["Report", "argmin", "root"],
    "imaml_lightning.inner": ["InnerSolver"],
    "imaml_lightning.learner.meta_learner": ["MetaLearner"],
    "imaml_lightning.linear": ["LinearSolver"],
    "imaml_lightning.problem.network": ["FlatNetwork"],
    "imaml_lightning.problem.objective": ["InnerObjective"],
    "imaml_lightning.problem.proximal": ["ProximalTerm"],
    "imaml_lightning.problem.solution": ["Result", "Solution"],
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "Report",
    "Result",
    "Solution",
    "Unrolled",
    "UsageError",
    "__version__",
    "adapt",
    "argmin",
    "load",
    "root",
]
