"""Implicit differentiation: the solution of a problem as a differentiable function of what stands in the problem.

It knows solvers, and neither θ nor networks nor episodes: ``Implicit`` is one caller of it, and any PyTorch code is another.
Read in this order: layer, minimisers, roots, newton_krylov, arguments, report.
"""

from imaml_lightning.adaptation.argmin.minimisers import argmin
from imaml_lightning.adaptation.argmin.newton_krylov import NewtonKrylov
from imaml_lightning.adaptation.argmin.report import Report
from imaml_lightning.adaptation.argmin.roots import root

__all__ = ["NewtonKrylov", "Report", "argmin", "root"]
