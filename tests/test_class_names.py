"""Names of classes in configurations and checkpoints: bare, ours before others', and as older versions had them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import CONFIGS, SMALL

from imaml_lightning import Implicit, MetaLearner, load
from imaml_lightning.cli import main
from imaml_lightning.learner.checkpoint import CONFIG_KEY, class_today
from imaml_lightning.models import Conv4
from imaml_lightning.problem import Hessian, NoProximalTerm

#: The learner's arguments in a checkpoint of the version before the package had rooms.
OLD_ARGUMENTS: dict[str, Any] = {
    "network": {"class_path": "imaml_lightning.models.conv4.Conv4", "init_args": {"filters": 4}},
    "adaptation": {
        "class_path": "imaml_lightning.adaptation.implicit.Implicit",
        "init_args": {
            "inner_solver": {"class_path": "imaml_lightning.inner.gradient_descent.GradientDescent"},
            "curvature": {"class_path": "imaml_lightning.curvature.Hessian", "init_args": {"damping": 0.25}},
            "proximal": {"class_path": "imaml_lightning.proximal.NoProximalTerm"},
        },
    },
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
}
#: Class paths of today, and what they were.
MOVED = {
    "imaml_lightning.problem.Hessian": "imaml_lightning.curvature.Hessian",
    "imaml_lightning.problem.NoProximalTerm": "imaml_lightning.proximal.NoProximalTerm",
    "imaml_lightning.data.Glyphs": "imaml_lightning.data.glyphs.Glyphs",
    "imaml_lightning.run.callbacks.CUDAGraphs": "imaml_lightning.callbacks.CUDAGraphs",
}
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "algorithms" and path.stem != "sweep"]


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])


def printed(*args: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The configuration that these arguments of ``fit`` come to."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", *args, "--print_config"])
    assert ended.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def as_before(options: Any) -> Any:
    """A configuration as the older version wrote it."""
    if isinstance(options, dict):
        return {key: as_before(option) for key, option in options.items()}
    return [as_before(o) for o in options] if isinstance(options, list) else MOVED.get(str(options), options)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_configuration_is_understood(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = yaml.safe_load(path.read_text())
    found = printed("--config", str(path), capsys=capsys)
    for name, theirs in (("network", found["model"]), ("adaptation", found["model"]), ("source", found["data"])):
        section = asked["data"] if name == "source" else asked["model"]
        assert theirs[name]["class_path"].startswith("imaml_lightning.")
        assert theirs[name]["class_path"].rpartition(".")[2] == section[name]["class_path"]


def test_a_sweep_names_classes_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())
    for name in sweep["parameters"]["model.adaptation.init_args.curvature"]["values"]:
        found = printed("--model.adaptation.init_args.curvature", name, capsys=capsys)
        assert found["model"]["adaptation"]["init_args"]["curvature"]["class_path"] == f"imaml_lightning.problem.{name}"


@pytest.mark.parametrize("today", MOVED)
def test_a_moved_class_is_found_by_its_name(today: str) -> None:
    import imaml_lightning.run.callbacks  # noqa: F401 (imported by the command line)

    assert class_today(MOVED[today]) == today
    assert class_today(today) == today


@pytest.mark.parametrize(
    "path", ["imaml_lightning.inner.Adam", "imaml_lightning.gone.Nothing", "torch.optim.Adam", "*"]
)
def test_other_words_stay_as_they_are(path: str) -> None:
    assert class_today(path) == path


def test_an_old_learner_is_loaded(tmp_path: Path) -> None:
    learner = MetaLearner(Conv4(filters=4), Implicit(curvature=Hessian(), proximal=NoProximalTerm()))
    state = {"state_dict": learner.state_dict(), "pytorch-lightning_version": "2.6.4"}
    path = tmp_path / "old.ckpt"
    torch.save(state | {"hyper_parameters": OLD_ARGUMENTS}, path)
    for loaded in (load(path), MetaLearner.load_from_checkpoint(path, clip_norm=2.0)):
        assert isinstance(loaded.adaptation, Implicit)
        assert loaded.adaptation.curvature == Hessian(damping=0.25)
        assert isinstance(loaded.adaptation.proximal, NoProximalTerm)
        assert torch.equal(loaded.flat.vector(), learner.flat.vector())
    assert loaded.clip_norm == 2.0


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")  # evaluating needs none of them
def test_an_old_run_is_evaluated_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    proximal = ["--model.adaptation.init_args.proximal", "imaml_lightning.proximal.NoProximalTerm"]
    curvature = ["--model.adaptation.init_args.curvature", "imaml_lightning.curvature.Hessian"]
    main(["fit", *SMALL, *proximal, *curvature, "--trainer.logger", "false", "--trainer.max_steps", "1"])
    (last,) = Path("runs").glob("*/000/last.ckpt")
    new = torch.load(last, weights_only=True)
    old = new | {key: as_before(new[key]) for key in (CONFIG_KEY, "hyper_parameters")}
    assert old[CONFIG_KEY]["model"]["adaptation"]["init_args"]["curvature"]["class_path"] == curvature[1]
    torch.save(old, last)
    capsys.readouterr()
    for command in ("validate", "test", "predict"):
        main([command, "--ckpt_path", str(last), "--trainer.accelerator", "cpu"])
    assert isinstance(load(last).adaptation.curvature, Hessian)
    main(["fit", "--ckpt_path", str(last), "--trainer.max_steps", "2"])
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_name_that_others_have_too_means_ours(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed("--model.network", "MLP", capsys=capsys)
    assert found["model"]["network"]["class_path"] == "imaml_lightning.models.MLP"
