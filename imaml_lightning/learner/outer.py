"""OuterSteps: what a learner does with a meta-gradient: exchange it, clip it, step, skip, schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from imaml_lightning.errors import DivergedError, UsageError, check_positive
from imaml_lightning.learner.base_learner import BaseLearner
from imaml_lightning.learner.reach import exchanged, reached

#: A run ends after this many meta-steps in a row whose gradient was not finite.
MAX_SKIPPED = 10


class OuterSteps(BaseLearner):
    """Manual optimization with one outer optimizer and, if asked, one scheduler.

    Attributes:
        skipped_steps: meta-steps that were skipped, because their gradient was not finite.
        skipped_in_a_row: so many of them at the end.
        unreached: parameters that no gradient has reached, as far as it was said.
    """

    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None
    clip_norm: float | None
    skipped_steps: Tensor

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.automatic_optimization = False
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64))
        self.skipped_in_a_row = 0
        self.unreached: set[str] = set()

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        trained = [*self._trained().values()]
        try:
            optimizer = self.optimizer(iter(trained))
            check_positive("model.optimizer.init_args", lr=optimizer.param_groups[0]["lr"])
        except (ValueError, TypeError) as error:
            raise UsageError(f"--model.optimizer cannot be used ({error}): set its lr and other init_args") from error
        try_step(self.optimizer, trained)
        if self.scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def on_train_start(self) -> None:
        figure = monitored(self._outer_scheduler())
        if figure is not None and not self.trainer.num_val_batches:
            raise UsageError(
                f"the scheduler waits for {figure} and there is no validation: use one that follows the steps"
            )

    def take_gradient(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the parameters' ``grad``."""
        self.manual_backward(exchanged(loss, self._trained().values()) if self._in_ddp() else loss)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _in_ddp(self) -> bool:
        return self._trainer is not None and isinstance(self.trainer.strategy, DDPStrategy)

    def _no_gradient_sync(self) -> contextlib.AbstractContextManager:
        """Under DDP, ranks exchange gradients once a meta-step, in the backward pass of the last chunk, and not within this."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else contextlib.nullcontext()

    @property
    def scaler(self) -> Any:
        """What multiplies losses, and with them gradients, under 16-mixed until the optimizer steps; None elsewhere."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _loss_scale(self) -> float:
        return self.scaler.get_scale() if self.scaler else 1.0

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Parameters that the gradients taken within do not reach are not trained, on any number of ranks; says which, once."""
        trained = self._trained()
        with reached(trained.values() if self._in_ddp() else ()) as found:
            yield
        if self._in_ddp():
            for p in trained.values():
                p.grad = p.grad if p in found else None
        unreached = [name for name, p in trained.items() if p.grad is None and name not in self.unreached]
        if unreached:
            self.unreached.update(unreached)
            rank_zero_warn(
                f"no gradient of {type(self.adaptation).__name__} reaches {', '.join(unreached)}: they stay as they are; "
                "if they are to be learned, use an adaptation that differentiates them (Implicit gives all a gradient)"
            )

    def _outer_step(self) -> Tensor:
        """One step of the outer optimizer; a meta-gradient that is not finite is skipped and counted. Returns its norm.

        Raises:
            DivergedError: it was not finite ``MAX_SKIPPED`` times in a row.
        """
        optimizer = self._outer_optimizer()
        scale = self._loss_scale()  # by which the gradients are still multiplied; the optimizer's step divides it out
        limit = float("inf") if self.clip_norm is None else self.clip_norm * scale
        norm = nn.utils.clip_grad_norm_(self._trained().values(), limit) / scale
        finite = bool(norm.isfinite())
        if finite or self.scaler:  # a scaler skips by itself, and then lowers its scale
            optimizer.step()
        if finite:
            self.adaptation.after_outer_step(self.flat, optimizer.optimizer)
            self.skipped_in_a_row = 0
            scheduler = self._outer_scheduler()
            if scheduler is not None and monitored(scheduler) is None:
                scheduler.step()
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row == MAX_SKIPPED:
                raise DivergedError(
                    f"the meta-gradient was not finite {MAX_SKIPPED} steps in a row: lower the inner or outer learning rate"
                )
        optimizer.zero_grad()
        return norm

    def _outer_scheduler(self) -> LRScheduler | None:
        scheduler = self.lr_schedulers()
        assert not isinstance(scheduler, list)
        return scheduler

    def _step_plateau(self) -> None:
        """Tell a scheduler that waits for a figure of the validation what it has become.

        Raises:
            UsageError: validation has no such figure.
        """
        figure = monitored(self._outer_scheduler())
        if figure is None or self.trainer.sanity_checking:
            return
        known = self.trainer.callback_metrics
        if figure not in known:
            raise UsageError(
                f"the scheduler waits for {figure}, which validation does not log: set its monitor to one of "
                f"{sorted(name for name in known if name.startswith('val/'))}"
            )
        scheduler = self._outer_scheduler()
        assert isinstance(scheduler, ReduceLROnPlateau)
        scheduler.step(known[figure])

    def _outer_optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)  # there is one
        return optimizer


def try_step(make: Callable[[Iterable[nn.Parameter]], Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimizer of this kind take one step on a copy of the parameters, with gradients of 0.

    Raises:
        UsageError: it cannot, because it needs a closure (LBFGS) or sparse gradients (SparseAdam), say.
    """
    copies = [nn.Parameter(torch.zeros_like(p, device="cpu")) for p in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = make(iter(copies))
    try:
        optimizer.step()
    except Exception as error:
        raise UsageError(
            f"the outer optimizer {type(optimizer).__name__} cannot take a meta-step, which gives it one dense gradient and "
            f"nothing to evaluate again ({' '.join(str(error).split())}): set --model.optimizer to Adam or SGD"
        ) from error


def monitored(scheduler: Any) -> str | None:
    """The figure that a scheduler waits for before it steps; None for one that steps after every meta-step.

    ``lightning.pytorch.cli.ReduceLROnPlateau`` names it; torch's own waits for the validation's loss, or accuracy where
    more is better.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return None
    return getattr(scheduler, "monitor", "val/loss" if scheduler.mode == "min" else "val/accuracy")
