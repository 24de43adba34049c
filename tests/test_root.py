"""root against closed forms, dense algebra and finite differences; Newton's method behind it."""

from __future__ import annotations

import pytest
import torch
from test_argmin import F64, close, numbers
from torch import Tensor
from torch.func import jacrev

from imaml_lightning import Result, UsageError, root
from imaml_lightning.adaptation.argmin import NewtonKrylov
from imaml_lightning.linear import GMRES, Dense

TIGHT = {"solver": NewtonKrylov(rtol=1e-14), "linear_solver": GMRES(200, 1e-13)}
A = 3 * torch.eye(5, dtype=F64) + numbers(5, 5) / 2  # not symmetric
W, U, X = numbers(5, 5, seed=1) / 4, numbers(5, 3, seed=2), numbers(4, 3, seed=3)


def affine(phi: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a @ phi - b


def equilibrium(z: Tensor, w: Tensor, u: Tensor, x: Tensor) -> Tensor:
    return z - torch.tanh(z @ w.T + x @ u.T)


def meta() -> list[Tensor]:
    return [m.clone().requires_grad_() for m in (W, U, X)]


@pytest.mark.parametrize("linear", [GMRES(50, 1e-13), GMRES(200, 1e-13, restart=3), Dense(1e-12)], ids=repr)
def test_linear_equations_in_closed_form(linear) -> None:
    a, b = A.clone().requires_grad_(), numbers(5, seed=4).requires_grad_()
    phi, report = root(affine, torch.zeros(5, dtype=F64), a, b, solver=NewtonKrylov(rtol=1e-13), linear_solver=linear)
    exact = torch.linalg.solve(a, b)
    close(phi, exact, rtol=1e-11)
    v = numbers(5, seed=5)
    for found, expected in zip(
        torch.autograd.grad(phi, [a, b], v, retain_graph=True), torch.autograd.grad(exact, [a, b], v), strict=True
    ):
        close(found, expected)
    inverse = torch.linalg.inv(a.detach())
    for mode in ("forward", "reverse"):
        close(report.jacobian(mode)[1], inverse)
    assert report.converged
    # The two triangles differ, so that a transposed matrix in either mode would not pass.
    assert (inverse - inverse.T).norm() > 0.1 * inverse.norm()


@pytest.mark.parametrize("batched", [False, True])
def test_equilibria(batched: bool) -> None:
    tensors = meta()
    z, report = root(equilibrium, torch.zeros(4, 5, dtype=F64), *tensors, batched=batched, **TIGHT)
    assert report.inner.result.tolist() == [Result.CONVERGED] * (4 if batched else 1)
    by_iteration = torch.zeros(4, 5, dtype=F64)
    for _ in range(300):
        by_iteration = torch.tanh(by_iteration @ W.T + X @ U.T)
    close(z, by_iteration, rtol=1e-12)
    # ∂z/∂m = −(∂F/∂z)⁻¹ ∂F/∂m with every matrix written out.
    matrix = jacrev(equilibrium)(by_iteration, W, U, X).reshape(20, 20)
    v = numbers(4, 5, seed=6)
    gradients = torch.autograd.grad(z, tensors, v, retain_graph=True)
    for number, gradient in enumerate(gradients):
        cross = jacrev(equilibrium, argnums=number + 1)(by_iteration, W, U, X).reshape(20, -1)
        expected = -(torch.linalg.solve(matrix, cross).T @ v.reshape(-1)).reshape(gradient.shape)
        close(gradient, expected)
    # Forward mode against backward mode.
    tangents = [numbers(*m.shape, seed=7) for m in tensors]
    moved = (report.jvp(*tangents) * v).sum()
    pulled = sum((t * g).sum() for t, g in zip(tangents, gradients, strict=True))
    assert abs(moved - pulled) <= 1e-10 * abs(pulled)


def test_second_derivatives() -> None:
    def ours(w: Tensor, u: Tensor) -> Tensor:
        return root(equilibrium, torch.zeros(4, 5, dtype=F64), w, u, X, batched=True, **TIGHT)[0]

    def unrolled(w: Tensor, u: Tensor) -> Tensor:
        z = torch.zeros(4, 5, dtype=F64)
        for _ in range(100):
            z = torch.tanh(z @ w.T + X @ u.T)
        return z

    def product(solve):
        return torch.autograd.functional.vhp(
            lambda w, u: solve(w, u).square().sum(), (W, U), (numbers(5, 5, seed=8), numbers(5, 3, seed=9))
        )[1]

    for found, expected in zip(product(ours), product(unrolled), strict=True):
        close(found, expected)
    assert torch.autograd.gradcheck(ours, (W.clone().requires_grad_(), U), check_forward_ad=True)


def test_gradients_are_those_of_differences_of_the_whole_solve() -> None:
    def loss(w: Tensor) -> Tensor:
        return root(equilibrium, torch.zeros(4, 5, dtype=F64), w, U, X, **TIGHT)[0].sin().sum()

    w, h = W.clone().requires_grad_(), 1e-4
    (gradient,) = torch.autograd.grad(loss(w), w)
    for entry in range(0, 25, 4):
        e = torch.zeros(25, dtype=F64)
        e[entry] = h
        e = e.reshape(5, 5)
        difference = (loss(W - 2 * e) - 8 * loss(W - e) + 8 * loss(W + e) - loss(W + 2 * e)) / (12 * h)
        assert abs(difference - gradient.reshape(-1)[entry]) <= 1e-8 * gradient.norm()


def test_found_elsewhere_in_a_dict_and_closed_over() -> None:
    """A pair of equations of two unknowns of different shapes, iterated to its fixed point by hand."""
    w = W.clone().requires_grad_()

    def F(phi: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"z": phi["z"] - torch.tanh(w @ phi["z"] + phi["s"]), "s": phi["s"] - 0.05 * phi["z"].sum().cos()}

    z, s = torch.zeros(5, dtype=F64), torch.zeros((), dtype=F64)
    with torch.no_grad():
        for _ in range(200):
            z, s = torch.tanh(w @ z + s), 0.05 * z.sum().cos()
    phi, report = root(F, {"z": z, "s": s}, solver=None, linear_solver=GMRES(50, 1e-13))
    assert report.converged
    (gradient,) = torch.autograd.grad(phi["s"], w)
    by_newton, newton = root(F, {"z": z * 0, "s": s * 0}, **TIGHT)
    assert newton.converged
    close(by_newton["z"], z)
    zz, ss = torch.zeros(5, dtype=F64), torch.zeros((), dtype=F64)
    for _ in range(200):
        zz, ss = torch.tanh(w @ zz + ss), 0.05 * zz.sum().cos()
    close(gradient, torch.autograd.grad(ss, w)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_and_scalars(dtype: torch.dtype) -> None:
    """φ² = m: dφ/dm = 1/(2φ)."""
    m = torch.tensor(2.0, dtype=dtype, requires_grad=True)
    phi, report = root(
        lambda phi, m: phi.square() - m, torch.tensor(1.0, dtype=dtype), m, solver=NewtonKrylov(rtol=1e-5)
    )
    phi.backward()
    assert report.converged
    assert phi.dtype == dtype
    assert abs(m.grad - 1 / (2 * 2**0.5)) < 1e-5


def test_what_has_no_solution_is_said_or_raised() -> None:
    def F(phi: Tensor, m: Tensor) -> Tensor:
        return phi.square() + m  # 0 nowhere in the second task

    m = torch.tensor([-1.0, 1.0], dtype=F64, requires_grad=True)
    start = torch.tensor([2.0, 2.0], dtype=F64)
    phi, report = root(F, start, m, batched=True)
    assert report.inner.result[0] == Result.CONVERGED
    assert report.inner.result[1] in (Result.STALLED, Result.STEP_LIMIT)
    close(report.inner.residual, F(phi, m).detach().abs())
    with pytest.raises(UsageError, match="the inner problem number 1 was not solved"):
        root(F, start, m, batched=True, strict=True)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda: root(lambda p: p.sum(), torch.ones(3)),
            r"F must return what is like φ, \[\(3,\)\]; it returned \[\(\)\]",
        ),
        (
            lambda: root(lambda p: {"a": p["a"]}, {"a": torch.ones(3), "b": torch.ones(2)}),
            "F must return what is like φ",
        ),
        (
            lambda: root(lambda p: p - p.mean() - 1, torch.ones(3), batched=True, solver=None),
            "depends on the φ of others",
        ),
        (
            lambda: root(lambda p, m: p - 1, torch.ones(3), torch.ones(2, requires_grad=True)),
            r"meta\[0\] needs a gradient, but the solution does not depend on it",
        ),
        (lambda: root(lambda p, m: m, torch.ones(3), torch.ones(3, requires_grad=True)), "does not depend on φ"),
        (lambda: root(lambda p: torch.ones(3), torch.ones(3), batched=True), "does not depend on φ"),
        (lambda: NewtonKrylov(rtol=1.0), "rtol"),
        (lambda: NewtonKrylov(max_steps=-1), "max_steps"),
    ],
)
def test_refusals(wrong, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        wrong()
