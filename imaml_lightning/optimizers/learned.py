"""Learned: a hyper-parameter of a differentiable optimizer, meta-learned with the outer optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers.base import DifferentiableOptimizer, TorchRule
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.precision import exactly

Domain = Literal["positive", "unit", "real"]


class Learned(nn.Module):
    """A hyper-parameter h that starts at the optimizer's own value and is learned like θ.

    It is kept in its domain by h = softplus(ρ) (``positive``) or h = sigmoid(ρ) (``unit``); ``real`` is h = ρ.

    Args:
        name: of the hyper-parameter (``lr``, ``momentum``, ``beta1``, ...).
        per: one value for the whole ``run``, for each ``group`` of parameters, each parameter ``tensor`` or each ``parameter``.
        per_step: and one for each inner step; steps beyond those trained use the last one.
        domain: None is ``unit`` for what must lie in [0, 1) and ``positive`` for everything else.
        groups: for ``group``: name patterns (``head.*``); a tensor belongs to the first that it matches.

    Raises:
        UsageError: for a name the optimizer does not have, a start on the edge of the domain, a tensor in no group.

    Source: per parameter, Li et al. (2017), "Meta-SGD" (where ``domain`` is real); per tensor and step, Antoniou et al.
    (2019), "How to train your MAML"; any hyper-parameter, Grefenstette et al. (2019), section 4.
    """

    def __init__(
        self,
        name: str = "lr",
        per: Literal["run", "group", "tensor", "parameter"] = "run",
        per_step: bool = False,
        domain: Domain | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if (per == "group") != bool(groups):
            raise UsageError(f"per: group and groups go together, got per={per} and groups={list(groups)}: give both")
        self.name, self.per, self.per_step, self.domain, self.groups = name, per, per_step, domain, list(groups)
        self.start = 0.0  # of ``raw``
        self.raw = nn.Parameter(torch.empty(0))

    def fit_to(self, network: FlatNetwork, optimizer: DifferentiableOptimizer, steps: int) -> None:
        """Give ``raw [step, entry]`` (one row without ``per_step``) its size and its start."""
        known = optimizer.hyperparameters() if isinstance(optimizer, TorchRule) else {}
        if not isinstance(optimizer, TorchRule) or self.name not in known:
            raise UsageError(
                f"{type(optimizer).__name__} has no hyper-parameter {self.name}: learn one of {list(known)}"
            )
        if self.domain is None:
            self.domain = "unit" if self.name in optimizer.fractions else "positive"
        self.sizes = network.sizes
        self.owners = [self._group(name) for name in network.names] if self.groups else list(range(len(network.sizes)))
        entries = {
            "run": 1,
            "group": len(self.groups),
            "tensor": len(self.sizes),
            "parameter": sum(self.sizes),
        }[self.per]
        self.start = self._inverse(float(known[self.name]))
        self.raw = nn.Parameter(torch.full((steps if self.per_step else 1, entries), self.start))

    def _apply(self, fn: Any, recurse: bool = True) -> Learned:
        start = torch.full(self.raw.shape, self.start, dtype=torch.float64)
        exactly(self, start, lambda: super(Learned, self)._apply(fn, recurse))
        return self

    def forward(self, step: int) -> Tensor:
        """h at inner step number ``step`` (1, 2, ...): ``[1]`` or ``[param]``; differentiable in ``raw``."""
        row = self.raw[min(step, len(self.raw)) - 1]
        value = row if self.domain == "real" else torch.sigmoid(row) if self.domain == "unit" else softplus(row)
        if self.per in ("run", "parameter"):
            return value
        return torch.cat([value[owner].expand(size) for owner, size in zip(self.owners, self.sizes, strict=True)])

    def _group(self, name: str) -> int:
        for number, pattern in enumerate(self.groups):
            if fnmatchcase(name, pattern):
                return number
        raise UsageError(f"parameter {name} is in no group of {self.groups}: add a pattern for it, or * at the end")

    def _inverse(self, value: float) -> float:
        if self.domain == "real":
            return value
        if value <= 0:
            raise UsageError(f"{self.name} cannot be learned from {value}: start it above 0, or set domain to real")
        return math.log(value / (1 - value)) if self.domain == "unit" else value + math.log(-math.expm1(-value))
