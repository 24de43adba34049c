"""Sweeps, precisions, and many devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command import CONFIGS, SMALL, run
from lightning.pytorch import Trainer, seed_everything
from torture import same

from imaml_lightning import EpisodeDataModule, Implicit, MetaLearner
from imaml_lightning.cli import main
from imaml_lightning.data import Sinusoid
from imaml_lightning.inner import GradientDescent
from imaml_lightning.models import MLP

SWEEP = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())
quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")


def corners(of: dict) -> list:
    """The values that a sweep may set a parameter to, or the ends of their range."""
    return of.get("values") or [of["min"], of["max"]]


@pytest.mark.parametrize("corner", [0, -1])
def test_every_parameter_of_the_sweep_parses(corner: int, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    before = SWEEP["command"][SWEEP["command"].index("fit") : -1]
    chosen = {name: corners(of)[corner] for name, of in SWEEP["parameters"].items()}
    with pytest.raises(SystemExit) as caught:
        main([*before, *(f"--{name}={value}" for name, value in chosen.items()), "--print_config"])
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, value in chosen.items():
        found = printed
        for key in name.split("."):
            found = found[key]
        assert (found["class_path"].rpartition(".")[2] if isinstance(found, dict) else found) == value, name


def meta_gradient(precision: str) -> tuple[torch.Tensor, dict[str, float]]:
    """The first meta-gradient under a precision of Lightning's Trainer, and what was logged beside it."""
    seed_everything(0, verbose=False)

    class Watched(MetaLearner):
        def _outer_step(self) -> torch.Tensor:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            scale = scaler.get_scale() if scaler else 1.0
            self.seen = torch.cat([p.grad.flatten().double() / scale for p in self.network.parameters()])
            assert {p.dtype for p in self.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}
            return super()._outer_step()

    learner = Watched(MLP(1, 1), Implicit(GradientDescent(0.01, 4)), torch.nn.MSELoss())
    data = EpisodeDataModule(Sinusoid(), shot=10, query=10, tasks=4)
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_steps=1, limit_val_batches=0, logger=False, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, data)
    return learner.seen, {name: value.item() for name, value in trainer.logged_metrics.items()}


@quiet
@pytest.mark.parametrize(("precision", "least"), [("32-true", 0.999999), ("bf16-mixed", 0.98)])
def test_precision_changes_the_meta_gradient_by_no_more_than_its_rounding(precision: str, least: float) -> None:
    exact, _ = meta_gradient("64-true")
    found, logged = meta_gradient(precision)
    assert torch.nn.functional.cosine_similarity(exact, found, dim=0) > least
    assert logged["train/linear_nonfinite"] == 0


TRAINED = ["--model.adaptation.init_args.proximal.init_args.learn", "true"]


@pytest.mark.parametrize(
    "adapted",
    [
        ["--model.adapt", "[layers.0.*]"],  # the whole network is evaluated; later layers are learned and not adapted
        [
            "--model.adapt",
            "[layers.2.*]",
            "--model.task_chunk",
            "1",
        ],  # features once, walked back through with the last chunk
    ],
    ids=["first layer", "cut"],
)
def test_ranks_agree_with_one_process_also_where_strength_and_shared_layers_are_learned(
    adapted: list[str], tmp_path: Path
) -> None:
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    states = []
    for name, devices in (("one", []), ("two", ddp)):
        done = run(
            "fit", *SMALL, *TRAINED, *adapted, *devices, "--name", name, "--trainer.max_steps", "6", folder=tmp_path
        )
        assert done.returncode == 0, done.stderr
        checkpoint = tmp_path / "runs" / name / "000" / "last.ckpt"
        states.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert states[0]["adaptation.proximal.raw"] != MetaLearner().adaptation.proximal.raw


def networks() -> bool:
    """Whether network namespaces, and cables between them, can be made here."""
    probe = (
        "trap 'ip netns del imaml_probe' EXIT; ip netns add imaml_probe && "
        "ip link add near netns imaml_probe type veth peer name far netns imaml_probe && ip netns exec imaml_probe true"
    )
    return subprocess.run(["sh", "-c", probe], capture_output=True).returncode == 0


def launched(*command: str, folder: Path, more: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """What a small training that another launcher starts has learned."""
    options = [*SMALL, "--trainer.max_steps", "6", "--trainer.strategy", "ddp", *more]
    folder.mkdir()
    done = subprocess.run([*command, "fit", *options], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "runs" / "sinusoid_5shot").iterdir()] == ["000"]  # one run, not one a rank
    return torch.load(folder / "runs" / "sinusoid_5shot" / "000" / "last.ckpt", weights_only=True)["state_dict"]


def test_torchrun_and_two_hosts_learn_what_two_ranks_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    ranks = ("--trainer.devices", "2")
    ours = launched(sys.executable, "-m", "imaml_lightning", folder=tmp_path / "ranks", more=ranks)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert same(launched(*torchrun, "-m", "imaml_lightning", folder=tmp_path / "torchrun", more=ranks), ours)
    if not networks():
        pytest.skip("two hosts need network namespaces, and so root on Linux")
    assert same(launched(str(Path(__file__).parent / "two_hosts.sh"), folder=tmp_path / "hosts"), ours)
