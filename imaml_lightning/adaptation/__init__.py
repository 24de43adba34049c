"""Adaptations: the members of the MAML family."""

from imaml_lightning.adaptation.base import Adaptation, Adapted
from imaml_lightning.adaptation.first_order import FirstOrder
from imaml_lightning.adaptation.implicit import Implicit
from imaml_lightning.adaptation.maml_plus_plus import MAMLPlusPlus
from imaml_lightning.adaptation.prototypes import Prototypes
from imaml_lightning.adaptation.reptile import Reptile
from imaml_lightning.adaptation.unrolled import Unrolled
from imaml_lightning.adaptation.walk import Walk

__all__ = [
    "Adaptation",
    "Adapted",
    "FirstOrder",
    "Implicit",
    "MAMLPlusPlus",
    "Prototypes",
    "Reptile",
    "Unrolled",
    "Walk",
]
