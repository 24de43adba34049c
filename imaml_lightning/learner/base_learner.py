"""BaseLearner: a network that learns a task from its support set, and how well it then does on the query set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from imaml_lightning.adaptation import Adaptation, Adapted
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.chunks import CPU_CHUNK
from imaml_lightning.learner.criterion import check_criterion
from imaml_lightning.learner.statistics import protocol, refuse_running_statistics
from imaml_lightning.learner.targets import settled
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.cut import Cut
from imaml_lightning.problem.losses import task_losses
from imaml_lightning.problem.modes import answering
from imaml_lightning.problem.network import FlatNetwork
from imaml_lightning.problem.objective import InnerObjective


class BaseLearner(LightningModule):
    """Adapts a network to tasks and judges what comes of it; ``MetaLearner`` trains its meta-parameters.

    The arguments are those of ``MetaLearner``.

    Attributes:
        flat: the network as a function of its adapted parameters.
        cut: the network split before the first of them.
        measured_chunk: tasks solved together where ``task_chunk`` is ``measured``, once that is known.
        derivatives: compiled ones, which ``callbacks.Compiled`` sets.
    """

    def __init__(
        self,
        network: nn.Module,
        adaptation: Adaptation,
        criterion: nn.Module,
        support_criterion: nn.Module | None,
        adapt: Sequence[str],
        task_chunk: int | Literal["auto", "measured"],
    ) -> None:
        super().__init__()
        if isinstance(task_chunk, int) and task_chunk < 1:
            raise UsageError(f"task_chunk must be at least 1, got {task_chunk}: set --model.task_chunk to auto or more")
        self.network, self.adaptation = network, adaptation
        self.criterion, self.support_criterion = criterion, support_criterion
        self.task_chunk = task_chunk
        self.measured_chunk: int | None = None
        self.derivatives: CompiledDerivatives | None = None
        self.flat = FlatNetwork(network, adapt)
        regroups = f"{type(adaptation).__name__} groups examples anew"
        self.cut = Cut(self.flat, regroups if adaptation.regroups else "")
        refuse_running_statistics(self.cut)
        adaptation.fit_to(self.flat)

    @property
    def protocol(self) -> str:
        """``transductive`` where a query batch is normalised by its own statistics, else ``inductive``."""
        return protocol(self.network)

    @property
    def any_way(self) -> bool:
        """Whether tasks may have any number of classes."""
        return self.flat.any_way

    def features(self, episode: Episode) -> Episode:
        """The episode with features in place of inputs: what comes before the first adapted parameter, evaluated once."""
        support, query = self.cut.features(episode.support.x, episode.query.x)
        return Episode(episode.support._replace(x=support), episode.query._replace(x=query))

    def objective(self, support: Examples, way: int | None = None) -> InnerObjective:
        """The inner problem of each task of ``support``, whose x are inputs."""
        return self.objective_on(support._replace(x=self.cut.features(support.x)[0]), way)

    def objective_on(self, support: Examples, way: int | None = None) -> InnerObjective:
        """The inner problem of each task of ``support``, whose x are features; of as many classes as it has, or ``way``, where
        the network is free in that."""
        way = (way or int(support.y.max()) + 1) if self.flat.any_way else None
        criterion = self.support_criterion or self.criterion
        theta = self.flat.vector(way)
        return InnerObjective(self.cut.adapted, support, theta, self.adaptation.proximal, criterion, self.derivatives)

    def adapted(self, support: Examples, way: int | None = None) -> Adapted:
        """φ for each task of ``support``, whose x are inputs; differentiable in all meta-parameters where gradients are enabled."""
        return self.adaptation(self.objective(support, way))

    def judge(self, phi: Tensor, query: Examples) -> dict[str, Tensor]:
        """Query ``loss [task]`` at ``phi [task, param]``, and ``accuracy [task]`` where targets are classes; x are inputs."""
        return self.judge_on(phi, query._replace(x=self.cut.features(query.x)[0]))

    def judge_on(self, phi: Tensor, query: Examples) -> dict[str, Tensor]:
        """As ``judge``, of ``query`` whose x are features."""
        outputs = self.cut.adapted.tasks(phi, query.x)
        for criterion in filter(None, (self.criterion, self.support_criterion)):
            check_criterion(criterion, outputs, query.y)
        figures = {"loss": task_losses(self.criterion, outputs, query)}
        if not query.y.is_floating_point():
            hits = (outputs.argmax(-1) == query.y).double()
            figures["accuracy"] = hits.sum(1) / query.real().sum(1)
        return figures

    def outputs(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The network's outputs on the query set ``[task, example, output]`` at θ and, adapted, at φ; without a graph.

        In evaluation mode, without dropout, also in the middle of a training and after it.
        """
        with answering(self), torch.no_grad():
            pairs = []
            for chunk in map(self.features, settled(episode).chunks(self._chunk_size())):
                objective = self.objective_on(chunk.support)
                ends = objective.start(), self.adaptation(objective).phi
                pairs.append(tuple(self.cut.adapted.tasks(at, chunk.query.x) for at in ends))
            before, after = zip(*pairs, strict=True)
            return torch.cat(before), torch.cat(after)

    def _chunk_size(self) -> int | None:
        """Tasks solved together; None is all."""
        if self.measured_chunk is not None and self.task_chunk == "measured":
            return self.measured_chunk
        if isinstance(self.task_chunk, str):
            together = self.device.type != "cpu" or self.cut.adapted.is_linear
            return None if together else CPU_CHUNK
        return self.task_chunk
