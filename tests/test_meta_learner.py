"""MetaLearner through a real Trainer, on episodes in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_learners import images, points, smooth_conv, smooth_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning.adaptation import FirstOrder, Implicit
from imaml_lightning.episode import Episode, Examples
from imaml_lightning.errors import UsageError
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner.calibration import seconds_a_task
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.outer import MAX_SKIPPED
from imaml_lightning.learner.scoreboard import validation_figures
from imaml_lightning.models import Conv4
from imaml_lightning.problem.proximal import ProximalTerm

STEPS = 4
pytestmark = pytest.mark.filterwarnings(
    # Loaders of episodes in memory need no workers, and these runs are short on purpose.
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*have no `val_dataloader`.*",
)


def single(episode: Episode) -> Episode:
    """In float32, as learners are by default."""
    return Episode(*(Examples(x.float(), y if y.dtype == torch.int64 else y.float()) for x, y in episode))


def loader(count: int = STEPS, seed: int = 0, make: Any = images) -> DataLoader:
    """Loader of ``count`` Episodes of 3 tasks."""
    return DataLoader([single(make(seed=seed + i)) for i in range(count)], batch_size=None)


def build(network: nn.Module | None = None, **options: Any) -> MetaLearner:
    torch.manual_seed(0)
    options.setdefault(
        "adaptation", Implicit(GradientDescent(lr=0.1, max_steps=3), proximal=ProximalTerm(2.0, learn=True))
    )
    return MetaLearner(network or smooth_conv(), **options)


def trainer(max_steps: int = STEPS, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(
        accelerator="cpu", max_steps=max_steps, log_every_n_steps=1, num_sanity_val_steps=0, **quiet | options
    )


def weights(learner: MetaLearner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.named_parameters()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_training_moves_everything_and_logs_what_it_should() -> None:
    learner = build()
    before, run = weights(learner), trainer()
    run.fit(learner, loader(), loader(seed=50))
    assert run.global_step == STEPS
    for name, after in weights(learner).items():  # the strength λ among them
        assert not torch.equal(after, before[name]), name
    logged = run.logged_metrics
    task = ["loss", "accuracy", "loss_before", "accuracy_before", "inner_stationarity", "inner_residual", "inner_steps"]
    task += [f"{solve}_{code}" for solve in ("inner", "linear") for code in ("converged", "step_limit", "nonfinite")]
    step = [
        "linear_residual",
        "linear_steps",
        "gradient_norm",
        "strength",
        "skipped_steps",
        "seconds",
        "peak_memory_mb",
    ]
    assert {f"train/{name}" for name in task + step} | {"lr"} <= logged.keys()
    validated = [name for name in task if not name.startswith("linear")]
    assert {f"val/{name}" for name in [*validated, "loss_ci95", "accuracy_ci95"]} <= logged.keys()
    assert {name for name in logged if name.startswith("val/")} == validation_figures(classes=True)
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["train/inner_steps"] == 3
    assert logged["train/inner_step_limit"] == 1


def test_regression_has_no_accuracy() -> None:
    learner, run = build(smooth_mlp(), criterion=nn.MSELoss()), trainer()
    run.fit(learner, loader(make=points), loader(make=points))
    assert {"train/loss", "val/loss", "val/loss_ci95"} <= run.logged_metrics.keys()
    assert not [name for name in run.logged_metrics if "accuracy" in name]
    assert {name for name in run.logged_metrics if name.startswith("val/")} == validation_figures(classes=False)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_gives_true_figures_time_after_time(inference_mode: bool) -> None:
    # Lightning's default, inference mode, forbids autograd, which adaptation needs.
    learner, data = build(), loader(3, seed=9)
    run = trainer(inference_mode=inference_mode)
    accuracy, loss = [], []
    for episode in data:
        adapted = learner.adapted(episode.support)
        figures = learner.judge(adapted.phi.detach(), episode.query)
        accuracy.append(figures["accuracy"])
        loss.append(figures["loss"].detach().double())
    for _ in range(2):
        [validated] = run.validate(learner, data, verbose=False)
        [tested] = run.test(learner, data, verbose=False)
        for name, values in (("accuracy", torch.cat(accuracy)), ("loss", torch.cat(loss))):
            assert validated[f"val/{name}"] == pytest.approx(values.mean().item(), rel=1e-5)
            assert validated[f"val/{name}_ci95"] == pytest.approx(1.96 * values.std().item() / 3, rel=1e-4)
        assert tested["test/accuracy_inductive"] == validated["val/accuracy"]
        assert "test/accuracy" not in tested
    predicted = torch.cat(run.predict(learner, data))
    assert predicted.shape == (9, 9, 3)
    torch.testing.assert_close(predicted.sum(-1), torch.ones(9, 9))


@pytest.mark.parametrize("names", [("a", "b"), (0, 1)])
def test_each_of_several_test_loaders_has_figures_of_its_own(names: tuple) -> None:
    learner, loaders = build(), [loader(2, seed=9), loader(3, seed=20)]
    alone = [trainer().test(learner, one, verbose=False)[0] for one in loaders]
    given = dict(zip(names, loaders, strict=True)) if names[0] == "a" else loaders
    [together, _] = trainer().test(learner, given, verbose=False)
    expected = {
        f"test/{n}/{key.removeprefix('test/')}": v
        for n, one in zip(names, alone, strict=True)
        for key, v in one.items()
    }
    assert together == expected
    assert alone[0]["test/loss"] != alone[1]["test/loss"]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_changes_nothing(inference_mode: bool) -> None:
    plain, checked = build(), build()
    trainer().fit(plain, loader())
    trainer(val_check_interval=1, inference_mode=inference_mode).fit(checked, loader(), loader(2, seed=70))
    assert_equal(weights(plain), weights(checked))


def test_chunks_change_results_by_rounding_only() -> None:
    results = []
    for chunk in ("auto", 2, 3):  # auto is 1 on a CPU
        learner = build(task_chunk=chunk, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).double()
        trainer(2).fit(learner, DataLoader([images(seed=i) for i in range(2)], batch_size=None))
        results.append(weights(learner))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*")  # it is the command line's that is
def test_a_measured_chunk_is_kept_for_the_run_and_its_checkpoints(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "imaml_lightning.learner.calibration._seconds", lambda of: {1: 3.0, 2: 1.0, 3: 2.0}[len(of.support.x)]
    )
    learner, run = build(task_chunk="measured").double(), trainer(2)
    run.fit(learner, DataLoader([images(tasks=3, seed=i) for i in range(2)], batch_size=None))
    assert learner._chunk_size() == 2  # half a second a task, where one alone takes three
    assert (
        "task_chunk 2; ms of an inner gradient a task, by tasks together: 1: 3e+03, 2: 500, 3: 667"
        in capsys.readouterr().out
    )
    learner.skipped_in_a_row = 7
    run.save_checkpoint(tmp_path / "c.ckpt")
    monkeypatch.undo()
    again = build(task_chunk="measured").double()
    trainer(3).fit(
        again, DataLoader([images(tasks=3)] * 3, batch_size=None), ckpt_path=tmp_path / "c.ckpt", weights_only=True
    )
    assert again._chunk_size() == 2  # not measured anew, so that the run goes on bit for bit
    again.on_load_checkpoint(torch.load(tmp_path / "c.ckpt", weights_only=True))
    assert again.skipped_in_a_row == 7  # a run cannot escape its end by being resumed


def test_the_fastest_chunk_is_measured_at_every_size() -> None:
    learner = build().double()
    times = seconds_a_task(learner.objective, images(tasks=5).support)
    assert list(times) == [1, 2, 4, 5]
    assert all(time > 0 for time in times.values())


def test_meta_gradient_is_the_mean_over_tasks_and_clipped_to_length() -> None:
    episode = single(images())
    learner = build()
    (learner.judge(learner.adapted(episode.support).phi, episode.query)["loss"].mean()).backward()
    gradient = {name: p.grad for name, p in learner.named_parameters()}
    length = torch.cat([g.flatten() for g in gradient.values()]).norm().item()
    for limit in (None, 0.25 * length, 4 * length):
        learner = build(optimizer=lambda p: torch.optim.SGD(p, lr=1.0), clip_norm=limit)
        before, run = weights(learner), trainer(1)
        run.fit(learner, DataLoader([episode], batch_size=None))
        shortened = 0.25 if limit == 0.25 * length else 1.0
        for name, after in weights(learner).items():
            torch.testing.assert_close(before[name] - after, shortened * gradient[name], rtol=1e-3, atol=1e-6)
        # What is logged is the length before clipping.
        assert run.logged_metrics["train/gradient_norm"] == pytest.approx(length, rel=1e-4)


def test_scheduler_steps_once_a_meta_step() -> None:
    learner = build(
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    )
    rates: list[float] = []

    class Note(Callback):
        def on_train_batch_end(self, trainer: Trainer, learner: MetaLearner, *_: Any) -> None:
            rates.append(learner.optimizers().param_groups[0]["lr"])

    trainer(6, callbacks=[Note()]).fit(learner, loader(6))
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125]


def broken() -> Episode:
    episode = single(images())
    episode.query.x[1] = torch.nan
    return episode


@pytest.mark.parametrize("adaptation", [Implicit, FirstOrder])
def test_gradient_that_is_not_finite_is_skipped_and_counted(adaptation: type) -> None:
    sound = [single(images(seed=i)) for i in range(2)]
    without, among = (
        build(
            adaptation=adaptation(GradientDescent(max_steps=2)),
            scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        )
        for _ in range(2)
    )
    trainer(2).fit(without, DataLoader(sound, batch_size=None))
    run = trainer(max_steps=-1, max_epochs=1)
    run.fit(among, DataLoader([sound[0], broken(), broken(), sound[1]], batch_size=None))
    assert_equal(weights(without), weights(among))
    assert among.skipped_steps == 2
    assert run.global_step == 2
    assert run.logged_metrics["train/skipped_steps"] == 2


def test_run_ends_after_too_many_skipped_steps_in_a_row() -> None:
    learner = build()
    before = weights(learner)
    sound = [single(images())]
    batches = [broken()] * (MAX_SKIPPED - 1) + sound + [broken()] * MAX_SKIPPED + sound
    seen: list[int] = []

    class Note(Callback):
        def on_train_batch_start(self, trainer: Trainer, learner: MetaLearner, batch: Any, number: int) -> None:
            seen.append(number)
            if number == MAX_SKIPPED - 1:
                assert_equal(weights(learner), before)

    with pytest.raises(UsageError, match=f"{MAX_SKIPPED} steps in a row"):
        trainer(100, callbacks=[Note()]).fit(learner, DataLoader(batches, batch_size=None))
    assert seen[-1] == 2 * MAX_SKIPPED - 1


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_figure_names_the_protocol(norm: str) -> None:
    learner = MetaLearner(Conv4(3, size=4, filters=8, downsample="stride", norm=norm))
    [figures] = trainer().test(learner, loader(1), verbose=False)
    assert f"test/accuracy_{'transductive' if norm == 'batch' else 'inductive'}" in figures


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    learner = build(adapt=["head.*"], clip_norm=3.0, task_chunk=2)
    run = trainer()
    run.fit(learner, loader(), loader())
    run.save_checkpoint(tmp_path / "c.ckpt")
    held = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert set(held["state_dict"]) == {*weights(learner), "skipped_steps"}
    fresh = build()
    again = MetaLearner.load_from_checkpoint(
        tmp_path / "c.ckpt", network=fresh.network, adaptation=fresh.adaptation, weights_only=True
    )
    assert_equal(weights(again), weights(learner))
    assert (again.flat.names, again.clip_norm, again.task_chunk) == (learner.flat.names, 3.0, 2)
    assert again.flat.names == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("options", "name"),
    [({"task_chunk": 0}, "task_chunk"), ({"clip_norm": 0.0}, "clip_norm"), ({"adapt": ["x"]}, "adapt")],
)
def test_bad_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        MetaLearner(smooth_conv(), **options)
