"""adapt: a meta-trained network and a few labelled examples in, predictions for others out.

learner = load("best.ckpt")
predictor = adapt(learner, x_support, y_support)
probabilities = predictor(x_query)
print(predictor.report())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imaml_lightning.episode import Examples, check_pixels
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.advice import advice, outcome
from imaml_lightning.learner.criterion import ByTargets, check_criterion
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.targets import is_one_hot
from imaml_lightning.problem.batching import per_task
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.modes import answering

_BLOCK = 256  # query examples that go through the network at once
_HELD_OUT = 100  # most examples that are left out in turn


def load(path: str | Path, trust: Sequence[str] = (), **parts: Any) -> MetaLearner:
    """The learner of a checkpoint, ready to adapt.

    Args:
        path: a file.
        trust: packages, besides ours and torch's, whose classes the checkpoint may name.
        **parts: network, adaptation and whatever else was given to the learner as an object in Python, which a checkpoint
            does not hold: made as in training.

    Raises:
        UsageError: the file is missing or damaged, names a class of another package, or needs a part that is not given.
    """
    return MetaLearner.load_from_checkpoint(path, map_location="cpu", trust=trust, **parts).eval()


@dataclass(frozen=True)
class AdaptationReport:
    """Whether adaptation to a support set helped.

    Attributes:
        examples, classes: of the support set; ``classes`` is None in regression.
        learners: networks in the ensemble, over which the following are means.
        loss_before, loss_after: of the support set, at θ and at φ.
        stationarity: ‖∇G‖ / ‖∇L_S‖ at φ; well below 1 where the inner problem was solved.
        growth: ‖∇G(φ)‖ / ‖∇G(θ)‖.
        diverged: whether G rose, or left the finite numbers, for one of them.
        solves: whether they mean to solve the inner problem, as MAML does not.
        left_out: of examples left out in turn, how many of those whose class had another example were classified
            rightly (0 to 1), or in regression the root mean squared error; None where there are too few examples.
        baseline: what guessing would reach in the place of ``left_out``: a class at random, or the mean of the others.
    """

    examples: int
    classes: int | None
    learners: int
    loss_before: float
    loss_after: float
    stationarity: float
    growth: float
    diverged: bool
    solves: bool
    left_out: float | None
    baseline: float | None

    def __str__(self) -> str:
        kind = "examples" if self.classes is None else f"examples of {self.classes} classes"
        lines = [f"support          {self.examples} {kind}"]
        if self.learners > 1:
            lines.append(f"ensemble         {self.learners} checkpoints")
        helped = "adaptation helped" if self.loss_after < self.loss_before else "adaptation did not help"
        lines.append(f"support loss     {self.loss_before:.4f} before, {self.loss_after:.4f} after: {helped}")
        solved = advice(self.stationarity, self.growth, self.diverged, self.solves)
        lines.append(f"inner problem    ‖∇G‖/‖∇L‖ = {self.stationarity:.2g}, {solved}")
        if self.left_out is None or self.baseline is None:
            lines.append("left out in turn too few examples: two of a class (three in regression) are needed")
        elif self.classes is None:
            lines.append(f"left out in turn error {self.left_out:.4g}; the others' mean would have {self.baseline:.4g}")
        else:
            lines.append(f"left out in turn {self.left_out:.1%} right; guessing has {self.baseline:.1%}")
        return "\n".join(lines)


def adapt(
    learners: MetaLearner | Sequence[MetaLearner], x: Any, y: Any, labels: Sequence[Any] | None = None
) -> Predictor:
    """Adapt to one task.

    Args:
        learners: a learner, or several for an ensemble.
        x: support inputs ``[example, *feature]``; tensor or array, as in training: uint8 images (0 to 255) or floats.
        y: the class of each, whole numbers or strings ``[example]`` or ``[example, 1]``, or one-hot; or floats, which mean
            regression.
        labels: all classes in the order of the network's outputs, where they mean the same in every task; None means
            those in ``y``, sorted.

    Raises:
        UsageError: x and y do not belong together, there are more classes than outputs, or the network cannot take x.
    """
    return Predictor([learners] if isinstance(learners, MetaLearner) else list(learners), x, y, labels)


class Predictor:
    """Networks adapted to one task. Made by :func:`adapt`.

    Attributes:
        labels: the class of each column of the probabilities; None in regression.
    """

    def __init__(self, learners: list[MetaLearner], x: Any, y: Any, labels: Sequence[Any] | None) -> None:
        self.learners = learners
        targets = _targets(y, learners[0])
        with self._answering():
            self.support = _inputs(x)
            self._take(targets, labels)
            self._fits()
            objectives = [learner.objective(self._examples(learner)) for learner in learners]
            adapted = [learner.adaptation(each) for learner, each in zip(learners, objectives, strict=True)]
            self.phis = [one.phi for one in adapted]
            self._stationarity = float(np.mean([one.stationarity.item() for one in adapted]))
            outcomes = [outcome(each, one.linearised) for each, one in zip(objectives, adapted, strict=True)]
            self._growth = float(np.mean([each["inner_growth"].item() for each in outcomes]))
            self._diverged = any(each["inner_diverged"].item() for each in outcomes)
        self._left_out: list[Tensor] | None = None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Within it the networks answer: in evaluation mode, without a graph, also under ``torch.inference_mode``."""
        with answering(*self.learners), torch.no_grad():
            yield

    def _take(self, targets: np.ndarray, labels: Sequence[Any] | None) -> None:
        """The targets as the networks are given them, and the labels that they stand for."""
        if len(targets) != len(self.support) or not len(targets):
            raise UsageError(
                f"the support set has {len(self.support)} inputs and {len(targets)} targets: give one for each"
            )
        if not self.support.isfinite().all() or (targets.dtype.kind == "f" and not np.isfinite(targets).all()):
            raise UsageError("the support set has numbers that are not finite: fill them, or leave their examples out")
        self.labels: list[Any] | None = None
        if targets.dtype.kind == "f":
            self.targets = torch.from_numpy(targets.astype(np.float32)).reshape(len(targets), -1)
        else:
            self.labels = list(labels) if labels is not None else sorted(set(targets.tolist()))
            if unknown := set(targets.tolist()) - set(self.labels):
                raise UsageError(f"class {min(unknown)} of the support set is none of {self.labels}: correct it")
            self.targets = torch.tensor([self.labels.index(label) for label in targets.tolist()])

    def __call__(self, x: Any) -> Tensor:
        """Probabilities ``[example, class]``, or values ``[example, output]``; means over the ensemble."""
        with self._answering():
            return torch.stack([self._of(number, _inputs(x)) for number in range(len(self.learners))]).mean(0)

    def together(self, x: Any) -> Tensor:
        """As a call, but all of ``x`` in one batch, whose statistics a network may use: the *transductive* protocol."""
        with self._answering():
            x = _inputs(x)
            pairs = zip(self.learners, self.phis, strict=True)
            return torch.stack([self._finished(learner.flat(phi[0], x.to(phi))) for learner, phi in pairs]).mean(0)

    def spread(self, x: Any) -> Tensor:
        """How uncertain the values are, as a standard deviation ``[example, output]``.

        Of an ensemble, that over its members. Of a single learner, the jackknife's over n adaptations with one support
        example left out each, ((n − 1)/n Σ (f_i − f̄)²)^½ (Efron, 1982); not a number for fewer than three examples.
        """
        with self._answering():
            x = _inputs(x)
            if len(self.learners) > 1:
                return torch.stack([self._of(number, x) for number in range(len(self.learners))]).std(0)
            n = len(self.support)
            if n < 3:
                return torch.full_like(self(x), torch.nan)
            values = torch.stack([self._probabilities(self.learners[0], phi, x) for phi in self._left_out_phis()[0]])
            return ((n - 1) * values.var(0, correction=0)).sqrt()

    def report(self) -> AdaptationReport:
        """Whether adaptation helped. Adapts once for each support example left out, 100 of them at most."""
        before, after = list[float](), list[float]()
        with self._answering():
            for learner, phi in zip(self.learners, self.phis, strict=True):
                for at, losses in ((self._start(learner)[None], before), (phi, after)):
                    examples = self._examples(learner)
                    losses.append(task_losses(learner.criterion, learner.flat.tasks(at, examples.x), examples).item())
            left_out, baseline = self._leave_one_out()
        return AdaptationReport(
            examples=len(self.support),
            classes=None if self.labels is None else len(set(self.targets.tolist())),
            learners=len(self.learners),
            loss_before=float(np.mean(before)),
            loss_after=float(np.mean(after)),
            stationarity=self._stationarity,
            growth=self._growth,
            diverged=self._diverged,
            solves=all(hasattr(learner.adaptation, "inner_solver") for learner in self.learners),
            left_out=left_out,
            baseline=baseline,
        )

    def _leave_one_out(self) -> tuple[float | None, float | None]:
        places, n = self._held_out(), len(self.targets)
        if self.labels is None:
            if n < 3:
                return None, None
            truth = self.targets[places]
            guesses = torch.stack([self._without(i) for i in range(len(places))])
            others = (self.targets.sum(0) - truth) / (n - 1)
            return (guesses - truth).square().mean().sqrt().item(), (others - truth).square().mean().sqrt().item()
        shared = [i for i, place in enumerate(places) if (self.targets == self.targets[place]).sum() > 1]
        if not shared:
            return None, None
        right = [int(self._without(i).argmax()) == int(self.targets[places[i]]) for i in shared]
        return float(np.mean(right)), 1 / len(set(self.targets.tolist()))

    def _without(self, number: int) -> Tensor:
        """What the ensemble says of a held-out example, adapted without it: probabilities or values ``[output]``."""
        place = self._held_out()[number]
        x = self.support[place : place + 1]
        rest = torch.cat([self.support[:place], self.support[place + 1 :]])
        phis = self._left_out_phis()
        said = [self._probabilities(learner, phis[i][number], x, rest)[0] for i, learner in enumerate(self.learners)]
        return torch.stack(said).mean(0)

    def _held_out(self) -> list[int]:
        """The support examples that are left out in turn: all, or 100 evenly spread ones."""
        n = len(self.support)
        return np.unique(np.linspace(0, n - 1, min(n, _HELD_OUT)).round().astype(int)).tolist()

    def _left_out_phis(self) -> list[Tensor]:
        """For each learner, φ ``[held out, param]`` of the support set without one example."""
        if self._left_out is None:
            n, places = len(self.support), self._held_out()
            kept = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, n)]) for i in places])
            self._left_out = [self._adapt_all(learner, kept) for learner in self.learners]
        return self._left_out

    def _adapt_all(self, learner: MetaLearner, kept: Tensor) -> Tensor:
        examples = self._examples(learner)
        return torch.cat(
            [
                learner.adapted(Examples(examples.x[0, rows], examples.y[0, rows]), self._way).phi
                for rows in kept.split(16)
            ]
        )

    def _of(self, number: int, x: Tensor) -> Tensor:
        return self._probabilities(self.learners[number], self.phis[number][0], x)

    def _probabilities(self, learner: MetaLearner, phi: Tensor, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Outputs for ``x [example, *feature]`` at ``phi [param]``: values, or probabilities of the classes there are.

        A network that normalises by the statistics of its batch sees each example beside the support set alone, so that
        no prediction depends on what else is asked.
        """
        beside = (self.support if beside is None else beside).to(phi)
        together = learner.protocol == "transductive"
        outputs = []
        for block in x.to(phi).split(_BLOCK):
            if together:
                one = lambda q: learner.flat(phi, torch.cat([beside, q[None]]))[-1]  # noqa: E731
                outputs += [per_task(one, part) for part in block.split(32)]
            else:
                outputs.append(learner.flat(phi, block))
        return self._finished(torch.cat(outputs))

    def _finished(self, outputs: Tensor) -> Tensor:
        outputs = outputs.float().cpu()
        return outputs if self.labels is None else outputs[:, : len(self.labels)].softmax(1)

    def _start(self, learner: MetaLearner) -> Tensor:
        """θ ``[param]``, of a network that is free in the number of classes for those of the support set."""
        return learner.flat.vector(self._way)

    @property
    def _way(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    def _examples(self, learner: MetaLearner) -> Examples:
        """The support set as a batch of one task."""
        like = self._start(learner)
        y = self.targets.to(like.dtype) if self.labels is None else self.targets
        return Examples(self.support.to(like.dtype).to(like.device)[None], y.to(like.device)[None])

    def _fits(self) -> None:
        for learner in self.learners:
            try:
                with torch.random.fork_rng(devices=[]):
                    examples = self._examples(learner)
                    outputs = learner.flat.tasks(self._start(learner)[None], examples.x)
            except RuntimeError as error:
                shape = tuple(self.support.shape[1:])
                raise UsageError(
                    f"the network cannot take inputs of shape {shape}: give them as in its training"
                ) from error
            width = outputs.shape[-1]
            if self.labels is not None and len(self.labels) > width:
                raise UsageError(
                    f"the support set has {len(self.labels)} classes, the network {width} outputs: train one with "
                    f"--data.way {len(self.labels)}, or take classes away"
                )
            if self.labels is None and width != self.targets.shape[1]:
                raise UsageError(
                    f"the targets have {self.targets.shape[1]} values, the network {width} outputs: give classes as whole "
                    "numbers or strings, and values as floats"
                )
            check_criterion(learner.criterion, outputs, examples.y)


def _inputs(x: Any) -> Tensor:
    """Inputs as the network takes them: uint8 as floats from 0 to 1."""
    tensor = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).detach()
    tensor = tensor.clone() if tensor.is_inference() else tensor
    check_pixels(str(tensor.dtype).removeprefix("torch."), tensor.ndim)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def _targets(y: Any, learner: MetaLearner) -> np.ndarray:
    """Classes ``[example]``, also of ``[example, 1]`` and one-hot rows; or values ``[example]`` or ``[example, output]``."""
    targets: np.ndarray = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if targets.ndim != 2:
        return targets
    classes = isinstance(learner.criterion, (nn.CrossEntropyLoss, nn.NLLLoss, ByTargets))
    if targets.shape[1] > 1 and targets.dtype.kind in ("biuf" if classes else "biu"):
        rows = torch.from_numpy(targets.astype(np.float64))
        if not is_one_hot(rows):
            return targets
        if isinstance(learner.criterion, ByTargets) and targets.dtype.kind == "f":
            raise UsageError(
                "targets of 0. and 1. may be classes or values: give class numbers, or the learner its criterion"
            )
        return targets.argmax(1)
    return targets if targets.dtype.kind == "f" else targets[:, 0]
