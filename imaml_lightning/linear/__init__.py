"""Linear solvers: A u = v by products with A."""

from imaml_lightning.linear.base import LinearSolver
from imaml_lightning.linear.conjugate_gradient import ConjugateGradient
from imaml_lightning.linear.dense import Dense
from imaml_lightning.linear.diagonal import DiagonalPreconditioner
from imaml_lightning.linear.exact import Exact
from imaml_lightning.linear.gmres import GMRES
from imaml_lightning.linear.minres import Minres
from imaml_lightning.linear.neumann import Neumann
from imaml_lightning.linear.nystrom import Nystrom
from imaml_lightning.linear.nystrom_preconditioner import NystromPreconditioner
from imaml_lightning.linear.preconditioner import Preconditioner

__all__ = [
    "GMRES",
    "ConjugateGradient",
    "Dense",
    "DiagonalPreconditioner",
    "Exact",
    "LinearSolver",
    "Minres",
    "Neumann",
    "Nystrom",
    "NystromPreconditioner",
    "Preconditioner",
]
