"""Ordinary training as a case of meta-learning: one problem, one long optimisation, and hyper-parameters learned on the way.

``OneProblem`` gives the small batches of one classification problem as the support sets of one task, ``Continued`` goes on
from where the last meta-step ended. See learned_rate.py, and learned_rate.yaml for the command line:

    PYTHONPATH=benchmarks imaml-lightning fit --trust _ordinary_training --config benchmarks/learned_rate.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from imaml_lightning.adaptation import Adapted, Unrolled
from imaml_lightning.data import ClassSource, EpisodeSource, Split
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError, check_at_least
from imaml_lightning.optimizers import SGD, DifferentiableOptimizer, Learned, State
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective


class OneProblem(EpisodeSource):
    """The first ``way`` training classes of a source, always with the same labels.

    Of each class the last ``held_out`` examples are for test, as many before them for validation. ``shot`` and ``query``
    count examples of the whole problem, drawn at random with replacement: the support set from the training examples,
    the query set from those of validation, in test from those of test. So in training the query loss is a
    validation loss, on which hyper-parameters may be learned.

    Args:
        source: of classes, such as Omniglot.
        held_out: examples of each class for validation, and as many for test.
    """

    task: Literal["classification", "regression"] = "classification"

    def __init__(self, source: ClassSource, held_out: int = 3) -> None:
        check_at_least(1, "source", held_out=held_out)
        self.source, self.held_out = source, held_out

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    def prepare(self) -> None:
        self.source.prepare()

    def setup(self) -> None:
        self.source.setup()

    def reading(self) -> dict[str, Any]:
        return self.source.reading()

    def check(self, split: Split, way: int, shot: int, query: int) -> None:
        members = self.source.bank.splits["train"]
        if way > len(members):
            raise UsageError(f"--data.way {way} asks for more classes than there are for training, {len(members)}.")
        least = np.diff(self.source.bank.starts)[members.start : members.start + way].min()
        if least <= 2 * self.held_out:
            raise UsageError(f"--data.source.held_out {self.held_out} leaves nothing of {least} examples: lower it.")

    def sample(self, split: Split, rngs: Sequence[np.random.Generator], way: int, shot: int, query: int) -> Episode:
        bank, first = self.source.bank, self.source.bank.splits["train"].start
        starts, counts = bank.starts[first:-1], np.diff(bank.starts)[first:]

        def draw(rng: np.random.Generator, number: int, part: Split) -> tuple[np.ndarray, np.ndarray]:
            y = rng.integers(way, size=number)
            training = counts[y] - 2 * self.held_out
            if part == "train":
                return starts[y] + rng.integers(training), y
            held = rng.integers(self.held_out, size=number) + (self.held_out if part == "test" else 0)
            return starts[y] + training + held, y

        asked: Split = "test" if split == "test" else "val"
        drawn = [(draw(rng, shot, "train"), draw(rng, query, asked)) for rng in rngs]
        sets = ([pair[part] for pair in drawn] for part in (0, 1))
        return Episode(
            *(
                Examples(
                    torch.from_numpy(bank.examples[np.stack([numbers for numbers, _ in each])]),
                    torch.from_numpy(np.stack([y for _, y in each])),
                )
                for each in sets
            )
        )


class Continued(Unrolled):
    """One long optimisation: each meta-step goes on from where the last one ended, θ ← φ.

    A meta-step takes ``steps`` steps on small batches (every ``steps``-th example of the support set, from each beginning in
    turn), then the query loss at φ gives the gradient of the learned hyper-parameters through these steps; θ gets none. In
    validation and test φ = θ. One task is trained at a time, the same one: see ``OneProblem``.

    Args:
        optimizer: the rule of one step; its ``moments`` are carried on as well.
        steps: steps, and small batches, of a meta-step.
        learned: hyper-parameters of the optimizer that are learned; none gives ordinary training.

    Raises:
        UsageError: for more than one task in a training step.

    Source: Grefenstette et al. (2019), section 4.1, the experiment of its figure 1.
    """

    regroups = True

    def __init__(
        self, optimizer: DifferentiableOptimizer = SGD(), steps: int = 5, learned: Sequence[Learned] = ()
    ) -> None:
        super().__init__(optimizer, steps, learned=learned, outer_moments=bool(optimizer.moments))
        self.end: tuple[Tensor, State] | None = None  # of the last meta-step, until its outer step is taken

    def forward(self, objective: InnerObjective) -> Adapted:
        tasks = len(objective.support.x)
        theta = objective.theta.detach()
        phi = theta.expand(tasks, -1)
        if not torch.is_grad_enabled():
            return Adapted.unsolved(phi, 0, objective)
        if tasks > 1:
            raise UsageError(f"Continued trains on one task at a time, got {tasks}: set --data.tasks 1")
        # Without anything to learn the steps need no graph.
        exact = any(p.requires_grad for p in self.parameters())
        walk = self.walk()
        state = walk.start(phi)
        for number in range(self.steps):
            batch = Examples(*(part[:, number :: self.steps] for part in objective.support))
            here = replace(objective, support=batch, theta=theta)
            phi, state = walk.take(here, range(number, number + 1), exact, phi, state)
        self.end = phi.detach(), {name: value.detach() for name, value in state.items()}
        return Adapted.unsolved(phi, self.steps, objective)

    def outer_loss(self, adapted: Adapted, loss: Tensor, objective: InnerObjective, query: InnerObjective) -> Tensor:
        return loss + 0 * objective.theta.sum()  # a gradient of zero, also where nothing is learned

    @torch.no_grad()
    def after_outer_step(self, network: FlatNetwork, optimizer: Optimizer) -> None:
        assert self.end is not None
        phi, state = self.end
        for name, value in network.named(phi[0]).items():
            network.network.get_parameter(name).copy_(value)
        for name in self.optimizer.moments:
            if name in state:
                self.get_buffer(f"outer_{name}").copy_(state[name][0])
        if self.outer_moments:
            self.outer_steps += self.steps
