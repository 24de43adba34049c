"""Adaptations: the members of the MAML family."""

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.adaptation.first_order import FirstOrder
from imaml_lightning.adaptation.implicit import Implicit

__all__ = ["Adaptation", "Adapted", "FirstOrder", "Implicit"]
