"""Preflight: what a network cannot do, said before it is trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imaml_lightning.adaptation import Implicit, Unrolled
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.problem.batching import never_batched, one_by_one
from imaml_lightning.problem.curvature import FiniteDifference, GaussNewton
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.precision import full_precision
from imaml_lightning.problem.randomness import Generators, draws

if TYPE_CHECKING:
    from imaml_lightning.learner.meta_learner import MetaLearner

#: Two ways to compute the same may differ by this share in float32.
ROUNDING = 1e-3


def preflight(learner: MetaLearner, episode: Episode) -> None:
    """Evaluate the network and one curvature product on two tasks, in training and in evaluation mode.

    Args:
        learner: about to be trained.
        episode: with inputs, of which the first two tasks are taken.

    Raises:
        UsageError: names what the network cannot do, and the remedy. Nothing has changed: neither parameters and buffers nor
            what is drawn next.
    """
    support = Examples(*(part[:2] for part in episode.support))
    with _as_it_was(learner), full_precision(support.x.device):
        _check_outputs(learner, support.x[0])
        for mode in (_training, answering):
            with mode(learner.network):
                objective = learner.objective(support)
                _check_forward(objective)
                _check_product(learner, objective)
        with answering(learner.network):
            objective = learner.objective(support)
            if not draws(support.x.device, lambda: objective.network(objective.start()[0], objective.support.x[0])):
                _check_functional(objective)
                _check_batched(objective)
                if _differentiated_twice(learner, objective):
                    _check_second_derivative(objective)


def _check_outputs(learner: MetaLearner, x: Tensor) -> None:
    """The whole network gives one number for each example and output."""
    network, name = learner.network, type(learner.network).__name__
    before = x.clone()
    try:
        with torch.no_grad(), answering(network):
            outputs = network(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        if x.is_floating_point() and any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in network.modules()):
            raise UsageError(
                f"{name} takes whole numbers and gets {x.dtype} ({said}): begin its forward with x = x.long(), and give "
                "whole numbers as int64, since uint8 means pictures, which are divided by 255"
            ) from error
        raise UsageError(f"{name} cannot take inputs of shape {tuple(x.shape)}: {said}") from error
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"{name} returns a {type(outputs).__name__}: wrap it in a module that returns one tensor [example, output]"
        )
    if outputs.shape[:1] != x.shape[:1] or not outputs.is_floating_point():
        raise UsageError(
            f"{name} returns {outputs.dtype} of shape {tuple(outputs.shape)} for {len(x)} examples: it must return "
            "floating point numbers [example, output]"
        )
    if not torch.equal(x, before) and not x.isnan().any():
        raise UsageError(
            f"{name} changes its inputs in place, which are evaluated many times: begin with x = x.clone()"
        )


def _check_forward(objective: InnerObjective) -> None:
    """What is adapted is a function of φ and x: evaluating it changes nothing."""
    network, phi, x = objective.network, objective.start().clone(), objective.support.x.detach().clone()
    module = network.network
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        one_by_one(network, phi, x)
    changed = [name for name, buffer in module.named_buffers() if name in kept and not _same(buffer, kept[name])]
    if changed:
        raise UsageError(
            f"{changed[0]} changes whenever {type(module).__name__} is evaluated, so that what is adapted is no fixed function: "
            "leave out what keeps it (running statistics, spectral_norm), or adapt only what comes after it"
        )
    if not torch.equal(phi, objective.start()):
        raise UsageError(
            f"{type(module).__name__} changes its parameters in place when it is evaluated: compute with a changed copy"
        )
    if not _same(x, objective.support.x):
        raise UsageError(f"{type(module).__name__} changes its inputs in place: begin its forward with x = x.clone()")


def _check_product(learner: MetaLearner, objective: InnerObjective) -> None:
    """The curvature product, and the derivatives that the adaptation needs besides, exist."""
    adaptation, name = learner.adaptation, type(learner.network).__name__
    u = torch.ones_like(objective.start())
    try:
        if isinstance(adaptation, Implicit):
            at = objective.linearise(objective.start())
            adaptation.curvature.product(at, u)
        elif _exact(adaptation):
            objective.linearise(objective.start()).loss.hvp(u)
        else:
            objective.value_and_gradient(objective.start())
    except (RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        remedy = "set --model.adaptation to Implicit with curvature FiniteDifference, which needs gradients alone"
        raise UsageError(f"{name} has no second derivative in torch ({said}): {remedy}") from error
    if not isinstance(adaptation, Implicit):
        return
    others = [m for m in objective.dependencies() if m is not objective.theta]
    try:
        torch.autograd.grad(at.gradient, others, u, allow_unused=True) if others else None
    except (RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        remedy = "adapt all parameters (--model.adapt '*'), or set --model.adaptation to FirstOrder"
        raise UsageError(f"{name} has no second derivative to what is not adapted ({said}): {remedy}") from error


def _check_functional(objective: InnerObjective) -> None:
    """A functional call and parameters in their places give the same outputs."""
    network, x = objective.network, objective.support.x[0]
    if network.any_way or network.is_linear or network.can_fold:
        return
    theta = objective.start()[0]
    moved = theta + 0.01 * (1 + theta.abs())
    tensors = [network.network.get_parameter(key) for key in network.keys]
    with torch.no_grad():
        called = network(moved, x)
        kept = [tensor.clone() for tensor in tensors]
        for tensor, value in zip(tensors, network.named(moved).values(), strict=True):
            tensor.copy_(value)
        placed = network.network(x)
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)
    if not _close(called, placed):
        raise UsageError(
            f"{type(network.network).__name__} keeps its parameters in other places as well (a list, an attribute, a view), where "
            "adapted values do not reach them: use them as attributes of the module that owns them"
        )


def _check_batched(objective: InnerObjective) -> None:
    """Gradients of tasks together are those of each alone; if not, tasks are evaluated one by one from now on."""
    network, phi = objective.network, objective.start() + 0.01
    if len(phi) == 1 or network.is_linear or network.can_fold:
        return
    together = objective.value_and_gradient(phi)[1]
    alone = torch.cat([objective.task(i).value_and_gradient(phi[i : i + 1])[1] for i in range(len(phi))])
    if not _close(together, alone):
        never_batched(network)
        name = type(network.network).__name__
        warnings.warn(f"{name} is evaluated one task at a time: together torch gives it other gradients", stacklevel=2)


def _differentiated_twice(learner: MetaLearner, objective: InnerObjective) -> bool:
    """Whether the meta-gradient depends on second derivatives of the network itself."""
    if objective.network.is_linear or objective.network.can_fold:
        return False
    adaptation = learner.adaptation
    if isinstance(adaptation, Implicit):
        through_shared = any(m is not objective.theta for m in objective.dependencies())
        return through_shared or not isinstance(adaptation.curvature, (GaussNewton, FiniteDifference))
    return _exact(adaptation)


def _check_second_derivative(objective: InnerObjective) -> None:
    """A Hessian product by autograd is that of gradients' differences, in float64: some functions have a wrong one."""
    network = objective.network
    if network.any_way:
        return
    try:
        module, criterion, proximal = copy.deepcopy((network.network, objective.criterion, objective.proximal))
    except (RuntimeError, TypeError):  # what cannot be copied cannot be checked this way
        return
    flat = FlatNetwork(module.double(), network.keys)
    one = (part[:1].detach() for part in objective.support)
    support = Examples(*(part.double() if part.is_floating_point() else part for part in one))
    double = InnerObjective(flat, support, flat.vector().detach(), proximal.double(), criterion.double())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *double.start().shape, generator=generator, dtype=torch.float64).to(double.theta)
    phi, u = double.start() + 0.01 * noise[0], noise[1]  # not at θ, where activations may stand exactly on a kink
    at = double.linearise(phi)
    u[at.loss.gradient == 0] = 0  # what has no gradient is no variable, such as rows of padding
    exact = at.loss.hvp(u).detach()
    for h in (1e-5, 1e-6, 1e-7):
        ahead, behind = (double.value_and_gradient(phi + step * u)[1] for step in (h, -h))
        if _close((ahead - behind) / (2 * h) - proximal.product(u).detach(), exact, 1e-2):
            return
    raise UsageError(
        f"{type(network.network).__name__} has a wrong second derivative: a Hessian product is not what differences of gradients "
        "say (a function of your own, or of torch, whose backward is not differentiable): write it out in plain operations, or "
        "set --model.adaptation to Implicit with curvature FiniteDifference"
    )


def _exact(adaptation: nn.Module) -> bool:
    return isinstance(adaptation, Unrolled) and adaptation.exact_steps() > 0


def _close(one: Tensor, other: Tensor, share: float = ROUNDING) -> bool:
    return bool((one - other).norm() <= share * torch.maximum(one.norm(), other.norm()))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """As it is when it is trained."""
    yield


@contextmanager
def _as_it_was(learner: nn.Module) -> Iterator[None]:
    """After it, buffers and generators are what they were."""
    kept: dict[str, Any] = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    generators = Generators(next(learner.parameters()).device)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in learner.named_buffers():
                if name in kept and buffer.shape == kept[name].shape:
                    buffer.copy_(kept[name])
        generators.restore()
