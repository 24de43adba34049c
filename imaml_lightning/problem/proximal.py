"""ProximalTerm: the regulariser λ/2 ‖φ − θ‖² of the inner problem, its strength fixed or meta-learned."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from imaml_lightning.errors import UsageError
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.precision import exactly


class ProximalTerm(nn.Module):
    """R(φ, θ) = ½ Σ_j λ_j (φ_j − θ_j)², in which λ is kept positive by λ = softplus(ρ).

    Args:
        strength: λ > 0, in units of the loss per squared parameter. The paper's Omniglot value is 2.
        per: one λ for all parameters, one for each parameter ``tensor``, or one for each ``parameter``.
        learn: meta-learn λ with the outer optimizer (through ρ); else it stays as given.

    Raises:
        UsageError: if strength is not a positive finite number.

    Source: Rajeswaran et al. (2019), equation 3; λ per parameter as in its discussion of richer regularisers.
    """

    def __init__(
        self, strength: float = 2.0, per: Literal["network", "tensor", "parameter"] = "network", learn: bool = False
    ) -> None:
        super().__init__()
        if not (math.isfinite(strength) and strength > 0):
            raise UsageError(f"strength must be a positive number, got {strength}: set the proximal term's λ above 0")
        self.per = per
        self.learn = learn
        self.initial = strength
        self.raw = nn.Parameter(self._raw(strength, 1).float(), requires_grad=learn)
        self.register_buffer("repeats", None, persistent=False)  # how often each λ occurs, if not once or everywhere

    @staticmethod
    def _raw(strength: float, count: int) -> Tensor:
        # softplus⁻¹(λ) in a form that neither overflows for large λ nor cancels for small λ.
        return torch.full((count,), strength + math.log(-math.expm1(-strength)), dtype=torch.float64)

    def fit_to(self, network: FlatNetwork) -> None:
        """Give ``raw`` one entry for each λ that ``per`` asks for in this network."""
        count = {"network": 1, "tensor": len(network.sizes), "parameter": sum(network.sizes)}[self.per]
        self.raw = nn.Parameter(self._raw(self.initial, count).float(), requires_grad=self.learn)
        self.repeats = torch.tensor(network.sizes) if self.per == "tensor" else None
        self.network = network

    def _apply(self, fn: Any, recurse: bool = True) -> ProximalTerm:
        exactly(self, self._raw(self.initial, len(self.raw)), lambda: super(ProximalTerm, self)._apply(fn, recurse))
        return self

    def strength(self) -> Tensor:
        """λ, ``[1]`` or ``[stored]`` (see ``FlatNetwork``); differentiable in ``raw``."""
        strength = softplus(self.raw)
        # Its length given, nothing has to wait for the device to be asked.
        return (
            strength
            if self.repeats is None
            else strength.repeat_interleave(self.repeats, output_size=sum(self.network.sizes))
        )

    def diagonal(self, params: int) -> Tensor:
        """The diagonal of Λ, which is all of it, ``[1]`` or ``[param]``."""
        strength = self.strength()
        return strength if strength.numel() == 1 else self.network.expand(strength, params)

    def product(self, d: Tensor) -> Tensor:
        """Λ d ``[task, param]``, with Λ = ∇²R: R is ½ dᵀΛd of the distance d = φ − θ ``[task, param]``, and ∇R is Λ d."""
        return self.diagonal(d.shape[1]) * d

    def value_and_gradient(self, phi: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R ``[task]`` and ∇R ``[task, param]``, of ``phi [task, param]`` and ``theta [param]``."""
        d = phi - theta
        gradient = self.product(d)
        return 0.5 * (d * gradient).sum(1), gradient

    def forward(self, phi: Tensor, theta: Tensor) -> Tensor:
        """R for each task ``[task]``."""
        return self.value_and_gradient(phi, theta)[0]


class NoProximalTerm(ProximalTerm):
    """R = 0: the inner objective is the support loss alone, as in MAML."""

    zero: Tensor

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("zero", torch.zeros(1), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> NoProximalTerm:
        nn.Module._apply(self, fn, recurse)
        return self

    def fit_to(self, network: FlatNetwork) -> None:
        """Nothing to fit."""

    def strength(self) -> Tensor:
        """0, ``[1]``."""
        return self.zero
