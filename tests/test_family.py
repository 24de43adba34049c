"""The members of the family by their YAML presets, and members that a user adds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from command import CONFIGS, refused
from torch import Tensor

from imaml_lightning.adaptation import Adaptation, Adapted
from imaml_lightning.cli.class_change import forget_options_of_the_old_class
from imaml_lightning.cli.command_line import CommandLine
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.optimizers import State, TorchRule
from imaml_lightning.problem.objective import InnerObjective
from imaml_lightning.problem.proximal import NoProximalTerm
from imaml_lightning.problem.solution import Result, Solution
from imaml_lightning.run.signals import Signals

PRESETS = sorted((CONFIGS / "algorithms").glob("*.yaml"))
TINY = [
    *("--data.source", "tiny_data.Tiny", "--data.way", "3", "--data.query", "2", "--data.tasks", "2"),
    *("--data.eval_query", "2", "--data.val_episodes", "2", "--data.test_episodes", "2"),
    *("--model.network.init_args.filters", "4", "--model.network.init_args.size", "4"),
    *("--model.network.init_args.downsample", "stride"),
    *("--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1", "--trainer.enable_progress_bar", "false"),
]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*number of training batches.*", "ignore:.*manual optimization.*"
)


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners remember their parameters before training; the command line sees none of pytest's arguments."""

    def remember(learner: MetaLearner) -> None:
        learner.before = {name: p.detach().clone() for name, p in learner.named_parameters()}

    forget_options_of_the_old_class()  # as the command line begins
    monkeypatch.setattr(MetaLearner, "on_fit_start", remember)
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])


def moved(learner: MetaLearner) -> set[str]:
    """The parameters that training has changed."""
    return {name for name, p in learner.named_parameters() if not torch.equal(p, learner.before[name])}


def fit(*options: str, tiny: Sequence[str] = TINY) -> MetaLearner:
    """What the command line trains for one step on tiny data."""
    with Signals() as signals:
        return CommandLine(signals, ["fit", "--trust", "tiny_data,test_family", *options, *tiny]).model


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_train(preset: Path) -> None:
    learner = fit("--config", str(CONFIGS / "omniglot_5w1s.yaml"), "--config", str(preset))
    asked = yaml.safe_load(preset.read_text())["model"]["adaptation"]
    assert type(learner.adaptation).__name__ == asked["class_path"].rpartition(".")[2]
    # What the paper's experiment says of the regulariser is gone where the preset has none.
    assert (learner.adaptation.proximal.strength().mean() > 0) == bool(asked["init_args"].get("proximal"))
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    # Behind a layer that starts at zero nothing moves in a first step: the body, the hidden layer of what is learned.
    behind = ("network.body", "adaptation.optimizer.net.0", "support_criterion.net.0")
    assert moved(learner) >= {name for name in trained if not name.startswith(behind)}


#: Over letters.yaml, which adapts the head alone: statistics that may be adapted, and a head of three ways.
PLAIN = ["--model.network.norm", "batch", "--model.network.any_way", "false"]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_mean_the_same_on_any_configuration(preset: Path) -> None:
    configs = [("--config", str(CONFIGS / f"{name}.yaml")) for name in ("omniglot_5w1s", "letters")]
    of_all, of_heads = [[*config, "--config", str(preset)] for config in configs]
    of_heads += [
        "--data.eval_settings",
        "[]",
        "--data.eval_way",
        "3",
        *(PLAIN if preset.stem not in ("imaml_head", "prototypes") else []),
    ]
    one, other = fit(*of_all).hparams, fit(*of_heads).hparams
    for part in ("adaptation", "adapt", "support_criterion", "folds"):
        assert one[part] == other[part], part


def test_what_adapts_all_of_a_network_with_running_statistics_is_told_the_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--config", str(CONFIGS / "letters.yaml"), "--config", str(CONFIGS / "algorithms" / "maml.yaml")]
    assert "--model.network.norm batch" in refused("fit", *options, capsys=capsys)


@dataclass(frozen=True)
class SignDescent(TorchRule):
    """A user's optimizer: φ ← φ − lr g/√(g² + eps), a smooth sign."""

    lr: float = 0.01
    eps: float = 1e-6

    def update(self, phi: Tensor, gradient: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        return phi - self.lr * gradient / (gradient.square() + self.eps).sqrt(), state


class Halfway(Adaptation):
    """A user's member: one step of a learned length, and half the way back to θ."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__(NoProximalTerm())
        self.log_rate = torch.nn.Parameter(torch.tensor(lr).log())

    def forward(self, objective: InnerObjective) -> Adapted:
        theta = objective.theta.expand(len(objective.support.x), -1)
        with torch.enable_grad():
            gradient = objective.gradient(theta)
        phi = theta - 0.5 * self.log_rate.exp() * gradient
        ones = torch.ones_like(phi[:, 0])
        solution = Solution(phi.detach(), ones.long() * Result.STEP_LIMIT, ones.long(), ones * torch.nan, 0 * ones)
        return Adapted(phi, solution, objective)


def test_an_optimizer_and_a_member_of_ones_own_train_from_yaml(tmp_path: Path) -> None:
    for own in (SignDescent, Halfway):
        assert len(inspect.getsource(own).splitlines()) < 30
    preset = tmp_path / "own.yaml"
    preset.write_text(
        """
        model:
          adaptation:
            class_path: imaml_lightning.adaptation.Unrolled
            init_args:
              optimizer: {class_path: test_family.SignDescent, init_args: {lr: 0.02}}
              learned: [{class_path: imaml_lightning.optimizers.Learned, init_args: {name: lr, per: tensor}}]
              proximal: null
        """
    )
    learner = fit("--config", str(preset))
    assert type(learner.adaptation.optimizer).__name__ == "SignDescent"
    assert "adaptation.learned.lr.raw" in moved(learner)

    preset.write_text("model: {adaptation: {class_path: test_family.Halfway, init_args: {lr: 0.25}}}")
    learner = fit("--config", str(preset))
    assert type(learner.adaptation).__name__ == "Halfway"
    assert {"adaptation.log_rate", "network.head.weight"} <= moved(learner)
