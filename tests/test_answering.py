"""Answers of a learner, wherever they are asked for: after training, under inference mode, in another process; targets of any form."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import images, points, smooth_conv
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Examples, Implicit, MetaLearner, UsageError, adapt
from imaml_lightning.evaluation.diagnostics import adaptation_curve
from imaml_lightning.evaluation.loading import load
from imaml_lightning.evaluation.protocols import one_at_a_time
from imaml_lightning.evaluation.uncertainty import predictive_variance
from imaml_lightning.inner import GradientDescent
from imaml_lightning.learner import memory
from imaml_lightning.learner.targets import targets
from imaml_lightning.models import MLP

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)
INNER = Implicit(GradientDescent(0.1, 3))


def classifier() -> MetaLearner:
    torch.manual_seed(0)
    return MetaLearner(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)), INNER)


def regressor() -> MetaLearner:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 1))
    return MetaLearner(network, INNER, nn.MSELoss()).double()


def labelled(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(3).repeat(3)
    return torch.eye(3)[y] + 0.1 * torch.randn(9, 3, generator=g), y


def episode() -> Episode:
    (x, y), (xq, yq) = labelled(), labelled(1)
    return Episode(Examples(x[None], y[None]), Examples(xq[None], yq[None]))


ANSWERS: dict[str, tuple[Callable[[], MetaLearner], Callable[[MetaLearner], Any]]] = {
    "outputs": (classifier, lambda learner: learner.outputs(episode())[1]),
    "one_at_a_time": (classifier, lambda learner: one_at_a_time(learner, episode())),
    "curve": (classifier, lambda learner: adaptation_curve(learner, episode()).figures["loss"]),
    "variance": (regressor, lambda learner: predictive_variance(learner, points())),
    "probabilities": (classifier, lambda learner: adapt(learner, *labelled())(labelled(1)[0])),
    "report": (classifier, lambda learner: torch.tensor(adapt(learner, *labelled()).report().loss_after)),
    "spread": (classifier, lambda learner: adapt(learner, *labelled()).spread(labelled(1)[0])),
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answers_are_without_dropout_and_leave_every_mode_as_it_was(name: str) -> None:
    make, answer = ANSWERS[name]
    learner = make()
    expected = answer(learner.eval())
    learner.train()
    learner.network[1].eval()  # one that the user froze
    modes = [module.training for module in learner.modules()]
    assert torch.equal(answer(learner), expected)
    assert [module.training for module in learner.modules()] == modes


@quiet
def test_the_same_query_twice_after_fit_has_the_same_answer() -> None:
    learner = classifier()
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, DataLoader([episode()] * 2, batch_size=None))
    assert learner.training
    predictor = adapt(learner, *labelled())
    query = labelled(1)[0]
    assert torch.equal(predictor(query), predictor(query))
    assert torch.equal(learner.outputs(episode())[1], learner.outputs(episode())[1])


@pytest.mark.parametrize("name", list(ANSWERS))
def test_inference_mode_changes_nothing(name: str) -> None:
    make, answer = ANSWERS[name]
    expected = answer(make())
    learner = make()
    with torch.inference_mode():
        found = answer(learner)
    assert torch.equal(found, expected)


BY_COMMAND_LINE = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}  # as its checkpoints say


def test_a_learner_loaded_under_inference_mode_adapts(tmp_path) -> None:
    options = {"class_path": "imaml_lightning.models.MLP", "init_args": {"features": 3, "outputs": 3}}
    saved = {
        "state_dict": MetaLearner(MLP(3, 3)).state_dict(),
        "hyper_parameters": {"network": options} | BY_COMMAND_LINE,
    }
    torch.save({**saved, "pytorch-lightning_version": "2.6.4"}, tmp_path / "c.ckpt")
    with torch.inference_mode():
        found = adapt(load(tmp_path / "c.ckpt"), *labelled())(labelled(1)[0])
    assert torch.equal(found, adapt(load(tmp_path / "c.ckpt"), *labelled())(labelled(1)[0]))


def test_learners_and_predictors_can_be_pickled() -> None:
    learner = classifier()
    predictor = adapt(learner, *labelled())
    again, learned = pickle.loads(pickle.dumps((predictor, learner)))
    query = labelled(1)[0]
    assert torch.equal(again(query), predictor(query))
    assert learned.configure_optimizers()["optimizer"].param_groups[0]["lr"] == 0.001


WORDS = np.array(["ant", "bee", "cat"])
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "column": lambda y: y[:, None],
    "int32": lambda y: y.int().numpy(),
    "one_hot": lambda y: nn.functional.one_hot(y),
    "one_hot_bool": lambda y: nn.functional.one_hot(y).bool().numpy(),
    "one_hot_float": lambda y: nn.functional.one_hot(y).float(),
    "list": lambda y: [[int(each)] for each in y],
}


@pytest.mark.parametrize("form", list(FORMS))
def test_adapt_takes_targets_in_every_form(form: str) -> None:
    x, y = labelled()
    learner = classifier()
    expected = adapt(learner, x, y)
    if form == "one_hot_float":  # they may be values as well, unless the criterion says what they are
        with pytest.raises(UsageError, match="may be classes or values"):
            adapt(learner, x, FORMS[form](y))
        learner.criterion = nn.CrossEntropyLoss()
    found = adapt(learner, x, FORMS[form](y))
    assert found.labels == expected.labels == [0, 1, 2]
    assert torch.equal(found(x), expected(x))


def test_adapt_takes_a_column_of_words() -> None:
    x, y = labelled()
    assert adapt(classifier(), x, WORDS[y][:, None]).labels == list(WORDS)


@quiet
@pytest.mark.parametrize(
    "form", [lambda y: y[..., None], lambda y: nn.functional.one_hot(y), lambda y: y.int(), lambda y: y.to(torch.uint8)]
)
def test_training_takes_class_targets_in_every_form(form: Callable[[Tensor], Tensor]) -> None:
    states = []
    for shape in (lambda y: y, form):
        torch.manual_seed(0)
        learner = MetaLearner(smooth_conv(), INNER).double()
        batch = Episode(*(Examples(part.x, shape(part.y)) for part in images()))
        trainer = Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        loader = DataLoader([batch], batch_size=None)
        trainer.fit(learner, loader)
        [figures] = trainer.test(learner, loader, verbose=False)
        states.append((learner.state_dict(), figures))
    assert states[0][1] == states[1][1]
    for name, value in states[0][0].items():
        assert torch.equal(states[1][0][name], value), name


def test_values_without_their_axis_do_not_broadcast() -> None:
    full = points()
    flat = Episode(*(Examples(part.x, part.y.squeeze(-1)) for part in full))
    for one, other in zip(regressor().outputs(full), regressor().outputs(flat), strict=True):
        assert torch.equal(one, other)


def test_whole_numbers_of_no_known_form_are_refused() -> None:
    with pytest.raises(UsageError, match=r"neither class numbers .* nor one-hot"):
        targets(torch.full((1, 4, 3), 2))


def test_peak_memory_is_in_megabytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    here = memory.peak_memory(torch.device("cpu"))
    assert 50 < here < 50_000
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_memory(torch.device("cpu")) == pytest.approx(here / 1024, rel=0.5)  # it would be bytes there
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_memory(torch.device("cpu")) is None
