"""Inner gradients and curvature products compiled."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from imaml_lightning.episode import Episode
from imaml_lightning.errors import UsageError
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.randomness import draws


class Compiled(Callback):
    """Adapts by compiled derivatives: ``--trainer.callbacks+=Compiled``.

    For small networks, whose time goes into launching one operation after the other; docs/speed.md has figures. Where
    it cannot be, or would be no gain, it says why, and work goes on without.

    Args:
        backend: of ``torch.compile``.

    Raises:
        UsageError: if there is no such backend.
    """

    def __init__(self, backend: str = "inductor") -> None:
        if isinstance(backend, str) and backend not in torch.compiler.list_backends(exclude_tags=()):
            raise UsageError(f"torch.compile has no backend {backend}: use inductor, or leave it out")
        self.backend = backend
        self._asked = False  # whether the network draws random numbers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, MetaLearner)
        if why := obstacle(pl_module):
            rank_zero_warn(f"nothing is compiled, because {why}: work goes on without")
        else:
            criterion = pl_module.support_criterion or pl_module.criterion
            pl_module.derivatives = CompiledDerivatives(pl_module.cut.adapted, criterion, self.backend)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Episode, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MetaLearner)
        if pl_module.derivatives and not self._asked:
            self._asked = True
            objective = pl_module.objective(batch.support)
            phi, x = objective.start()[0], objective.support.x[0]
            with torch.no_grad():
                random = draws(pl_module.device, lambda: objective.network(phi, x))
            # Every compiled function would draw for itself, and J and its transpose would not be of one network.
            if random:
                rank_zero_warn("nothing is compiled, because the network draws random numbers: work goes on without")
                pl_module.derivatives = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, MetaLearner)
        pl_module.derivatives = None


def obstacle(learner: MetaLearner) -> str | None:
    """Why the learner's derivatives are not to be compiled, if they are not."""
    if learner.flat.can_fold:
        return f"{type(learner.network).__name__} has its derivatives written out, which is faster"
    if learner.flat.shared():  # a shared part's features need the graph as well
        return "some parameters are not adapted, and the meta-gradient needs the graph that leads to them"
    if any(True for _ in (learner.support_criterion or learner.criterion).parameters()):
        return "the criterion has parameters, and the meta-gradient needs the graph that leads to them"
    if "mixed" in str(learner.trainer.precision):
        return f"--trainer.precision {learner.trainer.precision} chooses a precision for each layer as it runs"
    return None
