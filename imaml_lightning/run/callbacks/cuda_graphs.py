"""Learning on a GPU recorded once as CUDA graphs, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from imaml_lightning.episode import Episode, Examples
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.problem.randomness import Generators
from imaml_lightning.problem.rows import no_sync

#: Calls before recording, in which libraries choose their algorithms and the allocator finds its sizes.
WARM_UP = 3

Work = Callable[..., dict[str, Tensor]]


class CUDAGraphs(Callback):
    """Trains from recordings: ``--trainer.callbacks+=CUDAGraphs``.

    Each chunk of tasks is learned from as a whole (inner solves, query loss, linear solves, gradients) in one launch.
    Solvers then end by their step limits alone. For one GPU, and an adaptation that does the same in every meta-step;
    elsewhere it says why not, and training goes on without.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MetaLearner)
        if why := obstacle(pl_module):
            _say_without(pl_module, why)
        else:
            vars(pl_module)["learn"] = RecordedLearning(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module).pop("learn", None)


class Captured:
    """``work(key, *inputs)`` from a recording: the same kernels on the same memory, without Python between them.

    A meta-step is thousands of small kernels, which Python launches more slowly than a GPU runs them. One recording
    is made for each choice of shapes, types and key. The work may read and write tensors besides its inputs if
    they stay in place, as parameters do; it must not read tensor values on the host (``rows.no_sync`` sees to it for solvers).

    Args:
        work: from a key and tensors to named tensors.

    Source: torch.cuda.CUDAGraph, "whole-network capture".
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._recordings: dict[Hashable, tuple[torch.cuda.CUDAGraph, Sequence[Tensor], dict[str, Tensor]]] = {}

    def __call__(self, key: Hashable, *inputs: Tensor) -> dict[str, Tensor]:
        """``work(key, *inputs)``.

        Raises:
            RuntimeError: the work waits for the device, so that it cannot be recorded.
        """
        shapes = (key, *((t.shape, t.dtype) for t in inputs))
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(key, inputs)
        graph, places, results = self._recordings[shapes]
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return {name: result.clone() for name, result in results.items()}  # the next replay writes over them

    def _record(
        self, key: Hashable, inputs: Sequence[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor], dict[str, Tensor]]:
        places = [t.clone() for t in inputs]
        generators = Generators(places[0].device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), no_sync():
            for call in range(WARM_UP):
                # The first call may load kernels, which waits; after it nothing may.
                torch.cuda.set_sync_debug_mode("error" if call else "default")
                try:
                    self.work(key, *places)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(aside)
        torch.clear_autocast_cache()  # or the recording would go on with weights that were cast before it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), no_sync():
            results = self.work(key, *places)
        generators.restore()  # the replay draws what would be drawn if there had been no recording
        return graph, places, results


class RecordedLearning:
    """``MetaLearner.learn`` from a recording, whose gradients arrive among its results."""

    def __init__(self, learner: MetaLearner) -> None:
        self.learner, self.captured = learner, Captured(self._gradients)

    def __call__(self, chunk: Episode, tasks: int, log_now: bool) -> dict[str, Tensor]:
        """As ``MetaLearner.learn``; where it cannot be recorded it warns, and the learner goes on by itself."""
        named = dict(self.learner.named_parameters())
        before = {name: p.grad for name, p in named.items()}
        try:
            results = self.captured((tasks, log_now), *chunk.support, *chunk.query)
        except RuntimeError as error:
            _say_without(self.learner, f"this work cannot be recorded ({error})")
            results = self._gradients((tasks, log_now), *chunk.support, *chunk.query)
        for name, p in named.items():
            parts = [g for g in (before[name], results.pop(f"gradient of {name}", None)) if g is not None]
            p.grad = torch.stack(parts).sum(0) if parts else None
        return results

    def _gradients(self, key: tuple[int, bool], *tensors: Tensor) -> dict[str, Tensor]:
        """``learn`` as a function: the gradients are returned by name, and are those of this chunk alone."""
        self.learner.zero_grad()
        figures = type(self.learner).learn(self.learner, Episode(Examples(*tensors[:2]), Examples(*tensors[2:])), *key)
        named = self.learner.named_parameters()
        return figures | {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}


def obstacle(learner: MetaLearner) -> str | None:
    """Why the learner's work cannot be recorded, if it cannot."""
    if learner.device.type != "cuda":
        return f"it needs a CUDA device and this is a {learner.device.type}"
    if learner.trainer.world_size > 1:
        return "several ranks cannot exchange gradients inside a recording"
    if learner.scaler:
        return "16-mixed changes its loss scale from step to step (bf16-mixed has none)"
    if not learner.cut.whole:
        return "the shared part of the network is evaluated outside of what is recorded"
    if not learner.adaptation.constant:
        return f"{type(learner.adaptation).__name__} does not do the same in every meta-step"
    return None


def _say_without(learner: MetaLearner, why: str) -> None:
    vars(learner).pop("learn", None)
    rank_zero_warn(f"there are no CUDA graphs, because {why}: training goes on without them, only slower")
