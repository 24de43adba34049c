"""Inner solvers: minimise G(φ) for each task."""

from imaml_lightning.inner.base import InnerSolver
from imaml_lightning.inner.gradient_descent import GradientDescent

__all__ = ["GradientDescent", "InnerSolver"]
