"""Uncertainty of an adapted regression: the regulariser read as a prior."""

from __future__ import annotations

import torch
from torch import Tensor

from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.targets import settled
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.proximal import ProximalTerm


def predictive_variance(learner: MetaLearner, episode: Episode) -> Tensor:
    """Variance ``[task, example]`` of the network's one output on the query set, in units of the noise variance σ²; not
    a number for padding.

    For the mean of n squared errors as L_S, n/2σ² · G is the negative logarithm of a posterior whose prior is a normal
    distribution about θ. About φ it is normal with precision n/2σ² · A, A the Gauss-Newton matrix of the meta-gradient,
    so that, with J the Jacobian of the outputs on the support set and j(x) on a query point,

        Var f(x) = 2σ²/n · j(x)ᵀ A⁻¹ j(x) = 2σ²/nλ · (j(x)ᵀ j(x) − j(x)ᵀ Jᵀ (J Jᵀ + nλ/2 · I)⁻¹ J j(x))

    The second form needs no more than an n x n solve; padding of the support set is none of the n. Source: MacKay (1992),
    "A practical Bayesian framework for backpropagation networks"; the identity is Woodbury's.

    Raises:
        UsageError: more than one output or λ, a regulariser of another kind, or classes.
    """
    strength = _one_strength(learner, episode)
    with answering(learner), torch.no_grad():
        episode = settled(episode)
        phi = learner.adapted(episode.support).phi
        tasks = zip(phi, episode.support.x, episode.support.real(), episode.query.x, strict=True)
        variances = torch.stack([_variance(learner, strength, at, x[mine], query) for at, x, mine, query in tasks])
        return torch.where(episode.query.real(), variances, torch.nan)


def _one_strength(learner: MetaLearner, episode: Episode) -> float:
    """λ, where the formula holds."""
    proximal = learner.adaptation.proximal
    strength = proximal.strength().detach()
    if type(proximal) is not ProximalTerm or strength.numel() > 1:
        raise UsageError(
            f"the predictive variance needs one λ, and this {type(proximal).__name__} has more: use ProximalTerm with per network"
        )
    if not episode.support.y.is_floating_point() or episode.support.y.shape[-1] != 1:
        raise UsageError("the predictive variance is that of a regression with one output: give it such episodes")
    return float(strength)


def _variance(learner: MetaLearner, strength: float, phi: Tensor, support: Tensor, query: Tensor) -> Tensor:
    n = len(support)  # without padding
    j = torch.func.jacrev(learner.flat)(phi, torch.cat([support, query])).squeeze(1).double()  # [example, param]
    js, jq = j[:n], j[n:]
    gram = js @ js.T + n * strength / 2 * torch.eye(n, dtype=j.dtype)
    cross = js @ jq.T
    known = (cross * torch.linalg.solve(gram, cross)).sum(0)
    return 2 / (n * strength) * (jq.square().sum(1) - known)
