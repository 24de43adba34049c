"""CompiledDerivatives: the derivatives of L_S as functions of φ, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, func, nn
from torch.func import grad, grad_and_value, vmap

from imaml_lightning.episode import Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.losses import without_padding
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.rows import any_left


class CompiledDerivatives:
    """What inner solvers and curvature products evaluate again and again, each as one compiled function.

    With f the network, z = f(φ) and J = ∂z/∂φ, of each task's row of φ, u ``[task, param]``, support set x, y and
    g ``[task, example, output]``:

        outputs(φ, x) = z                    value_and_gradient(φ, x, y) = L_S, ∇L_S
        jvp(φ, x, u) = J u                   vjp(φ, x, g) = Jᵀ g                   hvp(φ, x, y, u) = ∇²L_S u

    The first call with other shapes takes seconds to minutes. What cannot be compiled is said once, and evaluated
    uncompiled from then on.

    Args:
        network: the network as a function of a flat vector, all of whose parameters are adapted.
        criterion: ℓ(outputs, targets) of one task, without parameters.
        backend: of ``torch.compile``.
    """

    def __init__(self, network: FlatNetwork, criterion: nn.Module, backend: str = "inductor") -> None:
        self.network, self.criterion, self.backend = network, criterion, backend
        self.failed = False

        self.masked = {classes: without_padding(criterion, classes) for classes in (False, True)}
        of_values, of_classes = (self.masked[classes] or criterion for classes in (False, True))

        def loss(phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return (of_values if y.is_floating_point() else of_classes)(network(phi, x), y)

        # torch.compile counts compilations by the code of a function, so each has code of its own.
        def outputs(phi: Tensor, x: Tensor) -> Tensor:
            return _each(network)(phi, x)

        def value_and_gradient(phi: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            gradient, value = _each(grad_and_value(loss))(phi, x, y)
            return value, gradient

        def jvp(phi: Tensor, x: Tensor, u: Tensor) -> Tensor:
            # Jᵀ g is linear in g, and its transpose is J: torch.compile does not get through torch.func.jvp everywhere.
            def one(phi: Tensor, x: Tensor, u: Tensor) -> Tensor:
                z, pull, *_ = func.vjp(lambda at: network(at, x), phi)
                return func.vjp(lambda g: pull(g)[0], torch.zeros_like(z))[1](u)[0]

            return _each(one)(phi, x, u)

        def vjp(phi: Tensor, x: Tensor, g: Tensor) -> Tensor:
            return _each(lambda phi, x, g: func.vjp(lambda at: network(at, x), phi)[1](g)[0])(phi, x, g)

        def hvp(phi: Tensor, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
            return _each(lambda phi, x, y, u: grad(lambda at: grad(loss)(at, x, y) @ u)(phi))(phi, x, y, u)

        self.outputs = self._compiled(outputs)
        self.value_and_gradient = self._compiled(value_and_gradient)
        self.jvp = self._compiled(jvp)
        self.vjp = self._compiled(vjp)
        self.hvp = self._compiled(hvp)

    def are_of(self, network: FlatNetwork, criterion: nn.Module, examples: Examples) -> bool:
        """Whether these are the network and the criterion, and that leaves out the padding of ``examples``, if there is any."""
        masked = self.masked[not examples.y.is_floating_point()]
        return (
            network is self.network
            and criterion is self.criterion
            and (masked is not None or not any_left(~examples.real()))
        )

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # There are few shapes, so each gets code of its own. One graph or none: else parts would run uncompiled without a word.
        fast = torch.compile(function, dynamic=False, fullgraph=True, backend=self.backend)

        @torch.no_grad()
        def call(*arguments: Tensor) -> Any:
            arguments = tuple(a.detach().contiguous() for a in arguments)
            if not self.failed:
                try:
                    return fast(*arguments)
                except RuntimeError as error:
                    self.failed = True
                    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    warnings.warn(
                        f"the derivatives cannot be compiled ({why}): training goes on uncompiled", stacklevel=2
                    )
            try:
                return function(*arguments)
            except RuntimeError as error:
                raise UsageError(f"torch cannot batch the network ({error}): leave out callbacks.Compiled") from error

        return call


def _each(of_one_task: Callable[..., Any]) -> Callable[..., Any]:
    return vmap(of_one_task, randomness="different")
