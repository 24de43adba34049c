"""Evaluation of a trained learner: protocols, accuracies with intervals, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from imaml_lightning.data import EpisodeDataModule, Split
from imaml_lightning.episode import IGNORED, Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.metrics import EpisodeMean
from imaml_lightning.learner.targets import settled
from imaml_lightning.problem.batching import per_task
from imaml_lightning.problem.modes import answering

#: Outputs on the query sets of an episode ``[task, example, output]``.
Answer = Callable[[MetaLearner, Episode], Tensor]
CHUNK = 16  # episodes answered together


def all_at_once(learner: MetaLearner, episode: Episode) -> Tensor:
    """The query set in one batch: with batch normalisation the *transductive* protocol, as in most publications."""
    return learner.outputs(episode)[1]


def one_at_a_time(learner: MetaLearner, episode: Episode) -> Tensor:
    """Each query example in a batch with the support set only, so that no other query example is seen: *inductive*.

    With batch normalisation the statistics are those of the support set and that example; without, it gives what
    ``all_at_once`` gives. Costs (support + 1) forward passes for each query example. Source: Nichol, Achiam, Schulman
    (2018), "On first-order meta-learning algorithms", section 6.1, and its released code.
    """
    with answering(learner), torch.no_grad():
        episode = settled(episode)
        phi = learner.adapted(episode.support).phi
        real = episode.support.real()
        tasks = zip(phi, episode.support.x, real, episode.query.x, strict=True)
        return torch.stack([each_beside(learner, at, x[mine], query) for at, x, mine, query in tasks])


def each_beside(learner: MetaLearner, phi: Tensor, support: Tensor, query: Tensor) -> Tensor:
    """Outputs ``[example, output]`` for ``query [example, *feature]`` at ``phi [param]``, each example in a batch with
    ``support [example, *feature]`` alone, so that no answer depends on what else is asked."""
    one = lambda x: learner.flat(phi, torch.cat([support, x.unsqueeze(0)]))[-1]  # noqa: E731
    return torch.cat([per_task(one, part) for part in query.split(32)])


@dataclass(frozen=True)
class Evaluation:
    """Answers on the query sets of fixed episodes. Padding of unequal tasks (see ``Examples``) counts in no figure."""

    outputs: Tensor  # [episode, example, output]
    targets: Tensor  # [episode, example] class numbers, or [episode, example, output]

    @property
    def real(self) -> Tensor:
        """Which query examples are no padding ``[episode, example]``."""
        return Examples(self.outputs, self.targets).real()

    @property
    def scores(self) -> Tensor:
        """Accuracy of each episode ``[episode]``; for regression its mean squared error."""
        if self.targets.is_floating_point():
            return self._mean((self.outputs.double() - self.targets.double()).square().mean(2))
        return self._mean((self.outputs.argmax(-1) == self.targets).double())

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each episode ``[episode]``; for regression its mean squared error, as ``scores``."""
        if self.targets.is_floating_point():
            return self.scores
        outputs = self.outputs.double().transpose(1, 2)
        return self._mean(cross_entropy(outputs, self.targets, ignore_index=IGNORED, reduction="none"))

    def _mean(self, values: Tensor) -> Tensor:
        """Means over the real query examples ``[episode]`` of ``values [episode, example]``."""
        return torch.where(self.real, values, 0).sum(1) / self.real.sum(1)

    def mean(self) -> tuple[float, float]:
        """Mean score over episodes, and the half-width of its 95% interval."""
        return mean_and_interval(self.scores)

    def gain_over(self, other: Evaluation) -> tuple[float, float]:
        """Mean difference of the scores to those of ``other`` on the same episodes, and the half-width of its 95%
        interval. Pairing removes what episodes differ in, so this interval is the one to compare learners by.

        Raises:
            UsageError: the episodes differ.
        """
        if not _same(self.targets, other.targets):
            raise UsageError(
                "the two evaluations are of other episodes: give both the same data and number of episodes"
            )
        return mean_and_interval(self.scores - other.scores)


def evaluate(
    learner: MetaLearner,
    data: EpisodeDataModule,
    split: Split = "test",
    episodes: int = 200,
    answer: Answer = all_at_once,
) -> Evaluation:
    """Adapt to the first ``episodes`` fixed episodes of a split and answer their query sets.

    Raises:
        UsageError: tasks of unequal size for a network that would take their padding for examples.
    """
    data.check_padding(learner)
    outputs, targets = [], []
    for first in range(0, episodes, CHUNK):
        episode = data.given(split, first, tasks=min(CHUNK, episodes - first))
        outputs.append(answer(learner, episode))
        targets.append(episode.query.y)
    return Evaluation(torch.cat(outputs), torch.cat(targets))


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether targets are the same, padding and all; NaN is padding in regression, and is the same as NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    """Mean of ``values [episode]`` and the half-width of its normal 95% interval."""
    metric = EpisodeMean()
    metric.update(values)
    result = metric.compute()
    return float(result["mean"]), float(result["ci95"])


def by_way_and_shot(
    learner: MetaLearner, data: EpisodeDataModule, ways: Sequence[int], shots: Sequence[int], episodes: int = 100
) -> dict[tuple[int, int], tuple[float, float]]:
    """Mean accuracy and interval for each (way, shot) on test episodes of ``data``'s source.

    A network with a head for 5 classes answers tasks of up to 5.
    """
    table = {}
    query = data.evaluation.query
    for way in ways:
        for shot in shots:
            other = EpisodeDataModule(
                data.source, *data.training.most, seed=data.seed, eval_way=way, eval_shot=shot, eval_query=query
            )
            table[way, shot] = evaluate(learner, other, episodes=episodes).mean()
    return table


@dataclass(frozen=True)
class Calibration:
    """Confidence (the largest probability) against accuracy, in bins of equal width; empty bins are not a number."""

    confidence: Tensor  # [bin]
    accuracy: Tensor  # [bin]
    share: Tensor  # [bin], of all answers

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1]. Source: Guo et al. (2017), equation 5."""
        return float(((self.accuracy - self.confidence).abs().nan_to_num() * self.share).sum())


def calibration(evaluation: Evaluation, bins: int = 10) -> Calibration:
    """How far the learner's probabilities can be trusted.

    Raises:
        UsageError: of a regression.
    """
    if evaluation.targets.is_floating_point():
        raise UsageError(
            "calibration is of class probabilities, and this evaluation is of a regression: use its scores"
        )
    real = evaluation.real
    confidence, guess = evaluation.outputs[real].double().softmax(-1).max(-1)
    right = (guess == evaluation.targets[real]).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    total = partial(torch.bincount, number, minlength=bins)
    count = total().double()
    return Calibration(total(confidence) / count, total(right) / count, count / count.sum())


def extremes(evaluation: Evaluation) -> tuple[int, int]:
    """Numbers of the easiest and the hardest episode: by accuracy, and among equals by the query loss; for regression by
    the loss alone."""
    accuracy = torch.zeros(()) if evaluation.targets.is_floating_point() else evaluation.scores
    ease = (accuracy - 1e-6 * evaluation.losses).tolist()
    return max(range(len(ease)), key=ease.__getitem__), min(range(len(ease)), key=ease.__getitem__)


def compare(learners: Iterable[tuple[str, MetaLearner]], data: EpisodeDataModule, episodes: int = 200) -> str:
    """A Markdown table of several learners on the same test episodes, each with its paired gain over the first."""
    rows, first = ["| learner | score | gain over the first |", "|---|---|---|"], None
    for name, learner in learners:
        evaluation = evaluate(learner, data, episodes=episodes)
        first = first or evaluation
        (mean, half), (gain, pair) = evaluation.mean(), evaluation.gain_over(first)
        rows.append(
            f"| {name} | {mean:.4f} ± {half:.4f} | {f'{gain:+.4f} ± {pair:.4f}' if first is not evaluation else ''} |"
        )
    return "\n".join(rows)
