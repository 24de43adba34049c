"""Meta-gradients by routes that share no code with the product: dense matrices, long unrolled descent, closed forms.

All take ``tensors``, the learner's parameters by their full names (``network.*``, ``adaptation.proximal.raw``,
``criterion.*``), and give gradients by the same names. Only torch is imported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

with warnings.catch_warnings():
    # At its first use torch's forward mode scripts something of its own, which torch itself deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    hessian(torch.sum)(torch.zeros(1))

RAW = "adaptation.proximal.raw"
Named = dict[str, Tensor]


def part(tensors: Named, prefix: str) -> Named:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class PlainBatchNorm(nn.BatchNorm2d):
    """Batch normalisation in arithmetic: forward over reverse mode through torch's own gives a Hessian that is not
    even symmetric (wrong by 1e-4 in torch 2.13, where reverse over reverse agrees with finite differences to 1e-13)."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        normal = centred / (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).sqrt()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


@dataclass
class Problem:
    """One task's inner problem G(φ, m), written a second time, with φ one flat vector and m a dictionary."""

    network: nn.Module
    criterion: nn.Module
    adapted: list[str]  # names of adapted parameters, in the network's order
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]

    def theta(self, m: Named) -> Tensor:
        return torch.cat([m[f"network.{name}"].reshape(-1) for name in self.adapted])

    def strength(self, m: Named) -> Tensor:
        """λ of every adapted entry, from ρ by log(1 + e^ρ)."""
        strength = torch.log1p(torch.exp(m[RAW]))
        if strength.numel() != len(self.adapted):
            return strength.expand_as(self.theta(m))
        return torch.cat(
            [each.expand(m[f"network.{name}"].numel()) for each, name in zip(strength, self.adapted, strict=True)]
        )

    def outputs(self, phi: Tensor, m: Named, x: Tensor) -> Tensor:
        weights, first = part(m, "network."), 0
        for name in self.adapted:
            shape = weights[name].shape
            weights[name] = phi[first : first + shape.numel()].reshape(shape)
            first += shape.numel()
        return functional_call(self.network, weights, (x,))

    def loss(self, phi: Tensor, m: Named, examples: tuple[Tensor, Tensor]) -> Tensor:
        outputs = self.outputs(phi, m, examples[0])
        return functional_call(self.criterion, part(m, "criterion."), (outputs, examples[1]))

    def inner(self, phi: Tensor, m: Named) -> Tensor:
        distance = phi - self.theta(m)
        return self.loss(phi, m, self.support) + 0.5 * (self.strength(m) * distance * distance).sum()

    def outer(self, phi: Tensor, m: Named) -> Tensor:
        return self.loss(phi, m, self.query)

    def solution(self, m: Named) -> Tensor:
        """φ* by Newton's method on the dense Hessian."""
        phi = self.theta(m)
        for _ in range(30):
            step = torch.linalg.solve(hessian(self.inner)(phi, m), grad(self.inner)(phi, m))
            phi = phi - step
            if step.norm() < 1e-14 * phi.norm():
                break
        return phi

    def gauss_newton(self, phi: Tensor, m: Named) -> Tensor:
        """JᵀHJ + diag(λ), dense: H is that of the loss in the outputs, J that of the outputs in φ."""
        x, y = self.support
        z = self.outputs(phi, m, x)
        jacobian = jacrev(self.outputs)(phi, m, x).reshape(z.numel(), -1)

        def loss(flat: Tensor) -> Tensor:
            return functional_call(self.criterion, part(m, "criterion."), (flat.reshape(z.shape), y))

        return jacobian.T @ hessian(loss)(z.reshape(-1)) @ jacobian + torch.diag(self.strength(m))


def dense_meta_gradient(
    problem: Problem, tensors: Named, phi: Tensor | None = None, gauss_newton: bool = False
) -> Named:
    """∂L_Q/∂m − (∂²G/∂m∂φ)ᵀ A⁻¹ v with every matrix written out, at φ* unless ``phi`` is given."""
    m = {name: t.detach() for name, t in tensors.items()}
    phi = problem.solution(m) if phi is None else phi
    matrix = problem.gauss_newton(phi, m) if gauss_newton else hessian(problem.inner)(phi, m)
    v, direct = grad(problem.outer, argnums=(0, 1))(phi, m)
    u = torch.linalg.solve(matrix, v)
    cross = jacrev(grad(problem.inner), argnums=1)(phi, m)
    return {name: direct[name] - torch.tensordot(u, cross[name], 1) for name in m}


def unrolled_meta_gradient(problem: Problem, tensors: Named, lr: float, steps: int) -> Named:
    """The gradient of L_Q after ``steps`` steps of descent from θ, backpropagated through all of them."""
    m = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    phi = problem.theta(m)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(problem.inner(phi, m), phi, create_graph=True)
        phi = phi - lr * slope
    slopes = torch.autograd.grad(problem.outer(phi, m), list(m.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(m, slopes, strict=True))


def ridge(support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], theta: Tensor, strength: Tensor):
    """φ*, dL_Q/dθ and dL_Q/dλ of a linear model under mean squared error, in closed form.

    With B = 2XᵀX/n: φ* = (B + Λ)⁻¹(2Xᵀy/n + Λθ), v the query gradient, u = (B + Λ)⁻¹ v: Λu, and −(φ* − θ)u by entry.
    """
    (x, y), (xq, yq) = support, query
    matrix = 2 * x.T @ x / len(x) + torch.diag(strength)
    phi = torch.linalg.solve(matrix, 2 * x.T @ y[:, 0] / len(x) + strength * theta)
    u = torch.linalg.solve(matrix, 2 * xq.T @ (xq @ phi - yq[:, 0]) / len(xq))
    return phi, strength * u, -(phi - theta) * u


def mean_over_tasks(gradient: Callable[[Problem], Named], problems: list[Problem]) -> Named:
    """The mean of ``gradient`` over the problems, name by name."""
    each = [gradient(problem) for problem in problems]
    return {name: torch.stack([g[name] for g in each]).mean(0) for name in each[0]}
