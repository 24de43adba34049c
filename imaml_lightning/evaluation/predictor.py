"""adapt: a meta-trained network and a few labelled examples in, predictions for others out.

learner = load("best.ckpt")
predictor = adapt(learner, x_support, y_support)
probabilities = predictor(x_query)
print(predictor.report())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.episode import Examples
from imaml_lightning.evaluation.adaptation_report import AdaptationReport
from imaml_lightning.evaluation.protocols import each_beside
from imaml_lightning.evaluation.support_set import SupportSet, as_inputs
from imaml_lightning.learner.advice import outcome
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.problem.feature_memory import FeatureMemory
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.modes import answering

_BLOCK = 256  # query examples that go through the network at once
_HELD_OUT = 100  # most examples that are left out in turn


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

    def __init__(
        self,
        learners: list[MetaLearner],
        x: Any,
        y: Any,
        labels: Sequence[Any] | None,
        memories: list[FeatureMemory] | None = None,
    ) -> None:
        self.learners = learners
        self._memories = memories or [FeatureMemory() for _ in learners]
        with self._answering():
            self.support = SupportSet.of(x, y, labels, learners[0].criterion)
            for learner in learners:
                self.support.check(learner)
            objectives = [learner.objective(self.support.examples(learner)) for learner in learners]
            adapted = [learner.adaptation(each) for learner, each in zip(learners, objectives, strict=True)]
            self.phis = [one.phi for one in adapted]
            self._stationarity = float(np.mean([one.stationarity.item() for one in adapted]))
            outcomes = [outcome(each, one.linearised) for each, one in zip(objectives, adapted, strict=True)]
            self._growth = float(np.mean([each["inner_growth"].item() for each in outcomes]))
            self._diverged = any(each["inner_diverged"].item() for each in outcomes)
        self.labels = self.support.labels
        self._left_out: list[Tensor] | None = None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Within it the networks answer: in evaluation mode, without a graph, also under ``torch.inference_mode``."""
        before = [learner.cut.memory for learner in self.learners]
        with answering(*self.learners), torch.no_grad():
            try:
                for learner, memory in zip(self.learners, self._memories, strict=True):
                    learner.cut.memory = memory
                yield
            finally:
                for learner, earlier in zip(self.learners, before, strict=True):
                    learner.cut.memory = earlier

    def __call__(self, x: Any) -> Tensor:
        """Probabilities ``[example, class]``, or values ``[example, output]``; means over the ensemble."""
        with self._answering():
            return torch.stack([self._of(number, as_inputs(x)) for number in range(len(self.learners))]).mean(0)

    def together(self, x: Any) -> Tensor:
        """As a call, but all of ``x`` in one batch, whose statistics a network may use: the *transductive* protocol."""
        with self._answering():
            x = as_inputs(x)
            pairs = zip(self.learners, self.phis, strict=True)
            return torch.stack([self._finished(learner.flat(phi[0], x.to(phi))) for learner, phi in pairs]).mean(0)

    def spread(self, x: Any) -> Tensor:
        """How uncertain the values are, as a standard deviation ``[example, output]``.

        Of an ensemble, that over its members. Of a single learner, the jackknife's over n adaptations with one support
        example left out each, ((n − 1)/n Σ (f_i − f̄)²)^½ (Efron, 1982); not a number for fewer than three examples.
        """
        with self._answering():
            x = as_inputs(x)
            if len(self.learners) > 1:
                return torch.stack([self._of(number, x) for number in range(len(self.learners))]).std(0)
            n = len(self.support.x)
            if n < 3:
                return torch.full_like(self(x), torch.nan)
            values = torch.stack([self._probabilities(self.learners[0], phi, x) for phi in self._left_out_phis()[0]])
            return ((n - 1) * values.var(0, correction=0)).sqrt()

    def report(self) -> AdaptationReport:
        """Whether adaptation helped. Adapts once for each support example left out, 100 of them at most."""
        before, after = list[float](), list[float]()
        with self._answering():
            for learner, phi in zip(self.learners, self.phis, strict=True):
                for at, losses in ((self.support.start(learner)[None], before), (phi, after)):
                    examples = self.support.examples(learner)
                    losses.append(task_losses(learner.criterion, learner.flat.tasks(at, examples.x), examples).item())
            left_out, baseline = self._leave_one_out()
        return AdaptationReport(
            examples=len(self.support.x),
            classes=None if self.labels is None else len(set(self.support.y.tolist())),
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
        places, n = self._held_out(), len(self.support.y)
        if self.labels is None:
            if n < 3:
                return None, None
            truth = self.support.y[places]
            guesses = torch.stack([self._without(i) for i in range(len(places))])
            others = (self.support.y.sum(0) - truth) / (n - 1)
            return (guesses - truth).square().mean().sqrt().item(), (others - truth).square().mean().sqrt().item()
        probabilities, truth, _ = self.left_out()
        if not len(truth):
            return None, None
        right = (probabilities.argmax(1) == truth).double()
        return right.mean().item(), 1 / len(set(self.support.y.tolist()))

    def left_out(self) -> tuple[Tensor, Tensor, list[int]]:
        """Of support examples whose class has another, 100 at most: the probabilities ``[example, class]`` by adaptations
        without each, their class numbers ``[example]``, and their places in the support set."""
        with self._answering():
            held_out = [
                (i, at) for i, at in enumerate(self._held_out()) if (self.support.y == self.support.y[at]).sum() > 1
            ]
            said = [self._without(i) for i, _ in held_out]
        places = [at for _, at in held_out]
        width = 0 if self.labels is None else len(self.labels)
        return torch.stack(said) if said else torch.empty(0, width), self.support.y[places], places

    def without_class(self, number: int) -> Predictor:
        """Adapted to the other classes alone."""
        kept = self.support.y != number
        assert self.labels is not None
        names = [self.labels[label] for label in self.support.y[kept].tolist()]
        return Predictor(self.learners, self.support.x[kept], names, None, self._memories)

    def _without(self, number: int) -> Tensor:
        """What the ensemble says of a held-out example, adapted without it: probabilities or values ``[output]``."""
        place = self._held_out()[number]
        x = self.support.x[place : place + 1]
        rest = torch.cat([self.support.x[:place], self.support.x[place + 1 :]])
        phis = self._left_out_phis()
        said = [self._probabilities(learner, phis[i][number], x, rest)[0] for i, learner in enumerate(self.learners)]
        return torch.stack(said).mean(0)

    def _held_out(self) -> list[int]:
        """The support examples that are left out in turn: all, or 100 evenly spread ones."""
        n = len(self.support.x)
        return np.unique(np.linspace(0, n - 1, min(n, _HELD_OUT)).round().astype(int)).tolist()

    def _left_out_phis(self) -> list[Tensor]:
        """For each learner, φ ``[held out, param]`` of the support set without one example."""
        if self._left_out is None:
            n, places = len(self.support.x), self._held_out()
            kept = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, n)]) for i in places])
            self._left_out = [self._adapt_all(learner, kept) for learner in self.learners]
        return self._left_out

    def _adapt_all(self, learner: MetaLearner, kept: Tensor) -> Tensor:
        examples = self.support.examples(learner)
        return torch.cat(
            [
                learner.adapted(Examples(examples.x[0, rows], examples.y[0, rows]), self.support.way).phi
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
        x = x.to(phi)
        if learner.protocol == "transductive":
            return self._finished(each_beside(learner, phi, (self.support.x if beside is None else beside).to(phi), x))
        features = torch.cat([learner.cut.features(block[None])[0][0] for block in x.split(_BLOCK)])
        return self._finished(learner.cut.adapted(phi, features))

    def _finished(self, outputs: Tensor) -> Tensor:
        outputs = outputs.float().cpu()
        return outputs if self.labels is None else outputs[:, : len(self.labels)].softmax(1)
