"""Linear solvers: A u = v by products with A."""

from imaml_lightning.linear.base import LinearSolver
from imaml_lightning.linear.conjugate_gradient import ConjugateGradient

__all__ = ["ConjugateGradient", "LinearSolver"]
