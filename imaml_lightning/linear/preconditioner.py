"""Preconditioner: a positive definite M near A whose inverse is cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from imaml_lightning.linear.base import Product


class Preconditioner(ABC):
    """Builds M for each task from products with A; its fields are its options."""

    @abstractmethod
    def inverse(self, product: Product, rhs: Tensor) -> Product:
        """r ↦ M⁻¹ r, ``[task, param] -> [task, param]``, for the A of ``product`` and a ``rhs`` of this shape."""
