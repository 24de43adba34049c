"""Inner solvers: minimise G(φ) for each task."""

from imaml_lightning.inner.adam import Adam
from imaml_lightning.inner.backtracking import BacktrackingGradientDescent
from imaml_lightning.inner.barzilai_borwein import BarzilaiBorwein
from imaml_lightning.inner.base import InnerSolver
from imaml_lightning.inner.black_box import BlackBox
from imaml_lightning.inner.gradient_descent import GradientDescent
from imaml_lightning.inner.heavy_ball import HeavyBall
from imaml_lightning.inner.hessian_free import HessianFree
from imaml_lightning.inner.lbfgs import LBFGS
from imaml_lightning.inner.nesterov import Nesterov
from imaml_lightning.inner.newton import Newton

__all__ = [
    "LBFGS",
    "Adam",
    "BacktrackingGradientDescent",
    "BarzilaiBorwein",
    "BlackBox",
    "GradientDescent",
    "HeavyBall",
    "HessianFree",
    "InnerSolver",
    "Nesterov",
    "Newton",
]
