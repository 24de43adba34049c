"""Compiled derivatives against the ordinary ones, and what is said where they cannot be had."""

from __future__ import annotations

import os

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_learners import Temperature, gradients, images, points, smooth_conv, smooth_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imaml_lightning import Episode, Implicit, MetaLearner, Unrolled
from imaml_lightning.errors import UsageError
from imaml_lightning.models import AnyWay, Conv4
from imaml_lightning.problem.compiled import CompiledDerivatives
from imaml_lightning.problem.curvature import GaussNewton, Hessian
from imaml_lightning.run.callbacks import Compiled

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*no `val_dataloader`.*"
)


# torch's own, when the compiler is loaded
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated", "ignore:.*LeafSpec")


@pytest.fixture(autouse=True)
def fresh() -> None:
    """torch.compile counts compilations over the whole process."""
    torch._dynamo.reset()


# torch's inductor writes vector code that its own headers leave out where vector kernels are switched off.
INDUCTOR = pytest.param(
    "inductor",
    False,
    marks=pytest.mark.skipif(
        os.environ.get("ATEN_CPU_CAPABILITY") == "default", reason="inductor needs vector kernels"
    ),
)


@pytest.mark.parametrize(("backend", "padded"), [INDUCTOR, ("eager", False), ("eager", True)])
def test_regression_equals_the_ordinary_route(backend: str, padded: bool) -> None:
    """``eager`` runs the graph as it is, without the seconds that a compiler takes behind it."""
    episode = points()
    if padded:
        episode.support.y[0, -1] = torch.nan
    learner = MetaLearner(smooth_mlp(), Implicit(curvature=Hessian()), criterion=nn.MSELoss()).double()
    expected = gradients(learner, episode)
    learner.derivatives = CompiledDerivatives(learner.flat, learner.criterion, backend)
    torch.testing.assert_close(gradients(learner, episode), expected)
    assert not learner.derivatives.failed


@pytest.mark.parametrize("adaptation", [Implicit(curvature=GaussNewton()), Unrolled(steps=2)], ids=["implicit", "maml"])
def test_classification_equals_the_ordinary_route(adaptation) -> None:
    learner = MetaLearner(smooth_conv(), adaptation).double()
    expected = gradients(learner, images())
    learner.derivatives = CompiledDerivatives(learner.flat, learner.criterion, "eager")
    torch.testing.assert_close(gradients(learner, images()), expected)
    assert not learner.derivatives.failed


def test_products_equal_the_ordinary_ones() -> None:
    learner = MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double()
    support = points().support
    plain = learner.objective(support)
    learner.derivatives = CompiledDerivatives(learner.flat, learner.criterion, "eager")
    compiled = learner.objective(support)
    torch.manual_seed(0)
    phi = plain.start() + 0.1 * torch.randn(plain.start().shape, dtype=torch.float64)
    u, here, there = torch.randn_like(phi), compiled.linearise(phi), plain.linearise(phi)
    for curvature in (GaussNewton(), Hessian()):
        torch.testing.assert_close(curvature.product(here, u), curvature.product(there, u))
    torch.testing.assert_close(here.gradient, there.gradient)
    torch.testing.assert_close(here.loss.outputs, there.loss.outputs)


def fit(learner: MetaLearner, episode: Episode, *callbacks: Compiled) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for parameter in learner.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(learner, DataLoader([episode, episode], batch_size=None))
    return learner.state_dict()


@quiet
def test_training_through_the_trainer() -> None:
    expected = fit(MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double(), points())
    learner = MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double()
    torch.testing.assert_close(fit(learner, points(), Compiled("eager")), expected)
    assert learner.derivatives is None


@quiet
def test_any_number_of_classes_behind_layers_that_are_evaluated_once() -> None:
    def learner() -> MetaLearner:
        before = nn.AvgPool2d(2), nn.Flatten()
        return MetaLearner(nn.Sequential(*before, nn.Linear(4, 6), nn.Tanh(), AnyWay(6, learn_start=True))).double()

    compiled = list[object]()

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    expected = fit(learner(), images())
    torch.testing.assert_close(fit(learner(), images(), Compiled(backend)), expected)
    assert compiled


def broken(graph: object, inputs: object) -> None:
    raise RuntimeError("no compiler here")


@quiet
def test_what_cannot_be_compiled_is_said_and_training_goes_on() -> None:
    expected = fit(MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double(), points())
    learner = MetaLearner(smooth_mlp(), criterion=nn.MSELoss()).double()
    with pytest.warns(UserWarning, match="cannot be compiled .*no compiler here.*goes on uncompiled"):
        actual = fit(learner, points(), Compiled(broken))
    torch.testing.assert_close(actual, expected)


@quiet
@pytest.mark.parametrize(
    ("learner", "why"),
    [
        (
            lambda: MetaLearner(Conv4(3, filters=4, size=4, downsample="stride")),
            "Conv4 has its derivatives written out",
        ),
        (lambda: MetaLearner(smooth_conv(), adapt=["head.*"]), "some parameters are not adapted"),
        (lambda: MetaLearner(smooth_conv(), support_criterion=Temperature()), "the criterion has parameters"),
    ],
    ids=["written_out", "partly_adapted", "learned_loss"],
)
def test_where_it_is_no_gain_it_says_why(learner, why: str) -> None:
    with pytest.warns(UserWarning, match=f"nothing is compiled, because {why}"):
        fit(learner().double(), images(), Compiled())


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="has no backend inductr: use inductor"):
        Compiled("inductr")
