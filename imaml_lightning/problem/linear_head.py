"""LinearHead: the derivatives of L_S where what is adapted is one linear layer, and the exact inverse of its curvature."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from imaml_lightning.problem.derivatives import Derivatives, Linearisation, pull_back
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.network import FlatNetwork, linear_outputs
from imaml_lightning.problem.output_curvature import output_curvature
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.rows import may_sync


class LinearHead(Derivatives):
    """For z = x Wᵀ (+ b), φ = (W, b): products of matrices. With a convex ℓ, G is then strongly convex."""

    kept: tuple[Tensor, Tensor, _SpanInverse] | None = None  # λ, d, and the last inverse

    def outputs(self, phi: Tensor) -> Tensor:
        """z ``[task, example, output]``, in the precision of φ: in bf16 nothing could be solved to rounding."""
        with full_precision(phi.device):
            return linear_outputs(self.network.split(phi), self.examples.x.to(phi.dtype))

    def value(self, phi: Tensor) -> Tensor:
        return task_losses(self.criterion, self.outputs(phi), self.examples)

    def value_and_gradient(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = self.outputs(phi)
        with torch.enable_grad():
            loss, p = self.loss_at(z.requires_grad_())
        with torch.no_grad():
            return loss.detach(), self.vjp(p)

    def gradient(self, phi: Tensor) -> Tensor:
        return self.vjp(self.loss_at(self.outputs(phi))[1])

    def linearise(self, phi: Tensor) -> Linearisation:
        return LinearisedHead(phi, self)

    def vjp(self, g: Tensor) -> Tensor:
        """Jᵀ g ``[task, param]`` of g ``[task, example, output]``, differentiable in both g and x."""
        with full_precision(g.device):
            weight = (g.mT @ self.examples.x.to(g.dtype)).flatten(1)
            return torch.cat([weight, g.sum(1)], 1) if len(self.network.names) == 2 else weight


class LinearisedHead(Linearisation):
    """A linear head at φ; differentiable in the features x as in every other meta-parameter."""

    def __init__(self, phi: Tensor, of: LinearHead) -> None:
        self.phi, self.of = phi.detach().requires_grad_(), of
        self.outputs = of.outputs(self.phi)
        self.loss, self.output_gradient = of.loss_at(self.outputs)
        self.gradient = of.vjp(self.output_gradient)

    def jvp(self, u: Tensor) -> Tensor:
        with torch.no_grad():
            return self.of.outputs(u)

    def vjp(self, g: Tensor) -> Tensor:
        with torch.no_grad():
            return self.of.vjp(g)

    def hvp(self, u: Tensor) -> Tensor:
        return self.vjp(pull_back(self.output_gradient, self.outputs, self.jvp(u)))

    @torch.no_grad()
    def inverse(self, strength: Tensor) -> Callable[[Tensor], Tensor]:
        """v ↦ (∇²L_S + diag(λ))⁻¹ v for ``strength`` λ, ``[1]`` or ``[param]``, by factors of examples x examples alone.

        With X the features (and a column of ones where there is a bias), S = ∂p/∂z and K = X Λ⁻¹ Xᵀ, Woodbury's identity:

            (Λ + Xᵀ S X)⁻¹ v = Λ⁻¹ (v − Xᵀ B X Λ⁻¹ v),   B = (S⁻¹ + K)⁻¹

        S has a diagonal block diag(d_c) for each output c, of which cross-entropy takes a matrix of rank one for each
        example: S = D − D R (RᵀDR)⁻¹ RᵀD, R summing over outputs. Then with E = (D⁻¹ + K)⁻¹, one block an output,
        B = E − E R (RᵀER)⁻¹ RᵀE.

        Raises:
            UsageError: S of this criterion is not known to have this form.

        The difference in the first formula cancels where K is large, so all of it is computed in float64.

        Cost: outputs · example³ (once example³ for squared errors and a single λ), and little for each v. Source:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 3.5, algorithm 3.3.
        """
        with full_precision(self.phi.device):
            d, coupled = output_curvature(self.of.criterion, self.outputs.detach(), self.of.examples)
            kept = self.of.kept
            # Under a squared error it is the same at every φ: where G is minimised and where A u = v is solved.
            if kept and may_sync() and torch.equal(kept[0], strength) and torch.equal(kept[1], d):
                return kept[2]
            network = self.of.network
            rows = strength if strength.numel() == 1 else _rows(network, strength)
            inverse = _SpanInverse(self._with_ones, rows, d.mT, coupled, network)
            self.of.kept = strength, d, inverse
            return inverse

    @cached_property
    def _with_ones(self) -> Tensor:
        x = self.of.examples.x.detach()
        return torch.cat([x, torch.ones_like(x[..., :1])], 2) if len(self.of.network.names) == 2 else x


def _rows(network: FlatNetwork, v: Tensor) -> Tensor:
    """``v [task, param]`` (or ``[param]``) as ``[task, output, feature]``, the bias as the last feature."""
    weight, *bias = network.split(v if v.ndim == 2 else v.unsqueeze(0))
    return torch.cat([weight, bias[0].unsqueeze(2)], 2) if bias else weight


def _flat(network: FlatNetwork, rows: Tensor) -> Tensor:
    """The inverse of ``_rows``."""
    if len(network.names) == 1:
        return rows.flatten(1)
    return torch.cat([rows[..., :-1].flatten(1), rows[..., -1]], 1)


class _SpanInverse:
    """The formula of ``LinearisedHead.inverse``; d ``[task, output, example]``, λ a number or ``[1, output, feature]``."""

    def __init__(
        self,
        x: Tensor,
        strength: Tensor,
        d: Tensor,
        coupled: bool,
        network: FlatNetwork,
    ) -> None:
        x, strength, d = map(_wide, (x, strength, d))
        self.x, self.strength, self.network = x, strength, network
        if strength.numel() == 1:
            kernel = (x @ x.mT / strength).unsqueeze(1)  # the same for every output
        else:
            kernel = (x.unsqueeze(1) / strength.unsqueeze(-2)) @ x.mT.unsqueeze(1)  # [task, output, example, example]
        root = d.sqrt().unsqueeze(-1)
        scaled = root * kernel * root.mT
        factor, _ = torch.linalg.cholesky_ex(scaled + torch.eye(scaled.shape[-1], dtype=x.dtype, device=x.device))
        self.e = root * torch.cholesky_inverse(factor) * root.mT  # [task, output or 1, example, example]
        self.coupling: Tensor | None = None
        if coupled:
            total = self.e.sum(1)
            total.diagonal(dim1=1, dim2=2).add_((d.sum(1) == 0).to(x.dtype))  # padding has no row of its own
            self.coupling = torch.linalg.cholesky_ex(total)[0]

    @torch.no_grad()
    def __call__(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            scaled = _rows(self.network, _wide(v)) / self.strength
            r = self._e_times(scaled @ self.x.mT)  # E X Λ⁻¹ v, [task, output, example]
            if self.coupling is not None:
                shared = torch.cholesky_solve(r.sum(1).unsqueeze(-1), self.coupling).unsqueeze(1)
                r = r - (self.e @ shared).squeeze(-1)
            return _flat(self.network, scaled - (r @ self.x) / self.strength).to(v.dtype)

    def _e_times(self, r: Tensor) -> Tensor:
        """E r, output by output; E is symmetric, and where all outputs share one, a single product of matrices does."""
        return r @ self.e.squeeze(1) if self.e.shape[1] == 1 else (self.e @ r.unsqueeze(-1)).squeeze(-1)


def _wide(t: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return t if t.device.type == "mps" else t.double()
