"""Solves that never look at their numbers, and learning from a recording of them."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import images, points, smooth_conv, smooth_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, FirstOrder, Implicit, MetaLearner, ProximalTerm, Unrolled
from imaml_lightning import inner as solvers
from imaml_lightning.linear import ConjugateGradient, Dense, Minres, Neumann, Nystrom
from imaml_lightning.models import MLP, Conv4
from imaml_lightning.problem.curvature import FiniteDifference, GaussNewton, Hessian
from imaml_lightning.problem.rows import no_sync
from imaml_lightning.run.callbacks import CUDAGraphs
from imaml_lightning.run.callbacks import cuda_graphs as module

INNER = [
    solvers.Adam(max_steps=2), solvers.BacktrackingGradientDescent(max_steps=1), solvers.BarzilaiBorwein(max_steps=2), solvers.HeavyBall(max_steps=2),
    solvers.GradientDescent(max_steps=2), solvers.GradientDescent(max_steps=3, rtol=0.5), solvers.HessianFree(max_steps=1), solvers.LBFGS(max_steps=1),
    solvers.Nesterov(max_steps=2),
]  # fmt: skip
LINEAR = [ConjugateGradient(), Minres(), Neumann(), Nystrom(), Dense()]
quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)


def name(of: object) -> str:
    return type(of).__name__


def meta_step(learner: MetaLearner, episode: Episode) -> dict[str, Tensor]:
    """Every number that one chunk gives: gradients by parameter, and the figures of the log."""
    learner.zero_grad()
    adapted = learner.adapted(episode.support)
    figures = learner.judge(adapted.phi, episode.query)
    figures["loss"].sum().backward()
    logged = learner._task_figures(episode, adapted, learner.flat.vector(), figures)
    return logged | {key: p.grad for key, p in learner.named_parameters() if p.grad is not None}


def on(device: str, episode: Episode) -> Episode:
    return Episode(*(Examples(*(t.to(device) for t in part)) for part in episode))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose tensors have no numbers: whoever looks at one, or mixes devices, fails."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which does not know this device
    return "meta"


def test_looking_is_found_out(nowhere: str) -> None:
    with pytest.raises(RuntimeError, match="cannot be called on meta"):
        meta_step(MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double().to(nowhere), on(nowhere, points()))


@pytest.mark.parametrize(
    "adaptation", [*map(Implicit, INNER), FirstOrder()], ids=lambda of: f"{name(of)}-{name(of.inner_solver)}"
)
def test_inner_solvers_look_at_nothing(adaptation, nowhere: str) -> None:
    learner = MetaLearner(Conv4(way=5, filters=4, size=16), adaptation).to(nowhere)
    part = Examples(torch.rand(3, 5, 1, 16, 16), torch.arange(5).expand(3, -1))
    with no_sync():
        seen = meta_step(learner, on(nowhere, Episode(part, part)))
    assert {figure.device.type for figure in seen.values()} == {nowhere}


@pytest.mark.parametrize("curvature", [GaussNewton(), Hessian(), FiniteDifference()], ids=name)
@pytest.mark.parametrize("linear", LINEAR, ids=name)
def test_linear_solvers_look_at_nothing(linear, curvature, nowhere: str) -> None:
    def adaptation() -> Implicit:
        return Implicit(solvers.GradientDescent(max_steps=2), linear, curvature, ProximalTerm(per="tensor", learn=True))

    with no_sync():
        for learner, episode in (
            (MetaLearner(smooth_conv(norm=True), adaptation()), images()),
            (MetaLearner(MLP(2, 1, [4]), adaptation(), nn.MSELoss()), points()),
        ):
            meta_step(learner.double().to(nowhere), on(nowhere, episode))


LONG = [ConjugateGradient(20, rtol=0.1), Minres(20, 1e-3), Neumann(0.01)]


@pytest.mark.parametrize(
    ("inner", "linear"), [*((i, ConjugateGradient()) for i in INNER), *((INNER[5], l) for l in LONG)]
)
def test_not_looking_changes_no_number(inner, linear) -> None:
    torch.manual_seed(0)
    learner = MetaLearner(smooth_conv().double(), Implicit(inner, linear, GaussNewton())).double()
    looked = meta_step(learner, images())
    with no_sync():
        blind = meta_step(learner, images())
    assert looked.keys() == blind.keys()
    for key, value in looked.items():
        torch.testing.assert_close(blind[key], value, rtol=1e-12, atol=1e-14, msg=key)


class Rerun:
    """Stands in for a CUDA graph where there is no GPU: runs the work again, into the same memory."""

    def __init__(self, again) -> None:
        self.again = again

    def replay(self) -> None:
        with no_sync():
            for place, value in self.again():
                place.copy_(value)


class CapturedHere(module.Captured):
    made: list = []

    def _record(self, key, inputs):
        places = [t.clone() for t in inputs]
        results = {n: r.detach().clone() for n, r in self.work(key, *places).items()}
        self.made.append(key)
        return Rerun(lambda: [(results[n], r.detach()) for n, r in self.work(key, *places).items()]), places, results


def fit(capture: bool, adaptation=None, chunk: int = 2, device: str = "cpu", **options) -> MetaLearner:
    torch.manual_seed(0)
    adaptation = adaptation or Implicit(solvers.GradientDescent(max_steps=3), proximal=ProximalTerm(learn=True))
    learner = MetaLearner(smooth_conv().double(), adaptation, task_chunk=chunk).double()
    trainer = Trainer(
        callbacks=[CUDAGraphs()] if capture else [], accelerator=device, devices=1, max_steps=6, logger=False, log_every_n_steps=2, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(learner, DataLoader([images(tasks=5, seed=i) for i in range(6)], batch_size=None))
    learner.logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return learner


def same_training(captured: MetaLearner, plain: MetaLearner, rtol: float) -> None:
    for (key, p), q in zip(captured.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol, msg=key)
    measured = ("train/seconds", "train/peak_memory_mb")
    for key in plain.logged.keys() - measured:
        assert captured.logged[key] == pytest.approx(plain.logged[key], rel=1e4 * rtol, abs=1e-6), key


@quiet
def test_learning_from_a_recording_is_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Captured", CapturedHere)
    monkeypatch.setattr(module, "obstacle", lambda learner: None)
    CapturedHere.made = []
    same_training(fit(capture=True), fit(capture=False), 1e-12)
    # Five tasks in chunks of two, with and without figures for the log: as many recordings as kinds of work.
    assert sorted(CapturedHere.made) == [(5, False), (5, False), (5, True), (5, True)]


@quiet
@pytest.mark.parametrize("adaptation", [None, Unrolled()], ids=["implicit", "unrolled"])
def test_without_a_gpu_it_says_so_and_trains(adaptation) -> None:
    with pytest.warns(UserWarning, match="there are no CUDA graphs, because .*: training goes on without"):
        captured = fit(capture=True, adaptation=adaptation)
    same_training(captured, fit(capture=False, adaptation=adaptation), 0.0)


@quiet
def test_work_that_cannot_be_recorded_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(module.Captured):
        def _record(self, key, inputs):
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(module, "Captured", Refuses)
    monkeypatch.setattr(module, "obstacle", lambda learner: None)
    with pytest.warns(UserWarning, match="cannot be recorded .*synchronizing"):
        captured = fit(capture=True)
    same_training(captured, fit(capture=False), 1e-12)


@quiet
@pytest.mark.gpu
@pytest.mark.parametrize(
    "adaptation", [None, FirstOrder(solvers.GradientDescent(max_steps=3))], ids=["implicit", "first_order"]
)
def test_a_cuda_graph_learns_the_same(adaptation) -> None:
    plain = fit(False, adaptation, device="cuda", precision="64-true")
    same_training(fit(True, adaptation, device="cuda", precision="64-true"), plain, 1e-9)
