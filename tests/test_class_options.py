"""Every solver by its name, on the real command line and in YAML."""

from __future__ import annotations

import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import CONFIGS, SMALL

from imaml_lightning import inner, linear
from imaml_lightning.cli import main

CURVATURES = ["FiniteDifference", "GaussNewton", "Hessian", "ReleasedCode"]
BASES = {"InnerSolver", "LinearSolver", "Preconditioner", "DiagonalPreconditioner", "NystromPreconditioner"}
NAMES = {
    "inner_solver": [name for name in inner.__all__ if name not in BASES],
    "linear_solver": [name for name in linear.__all__ if name not in BASES],
    "curvature": CURVATURES,
}
#: Sets that have every name in them at least once.
SETS = [
    (inner_solver, linear_solver, "Hessian" if linear_solver == "Exact" else curvature)
    for inner_solver, linear_solver, curvature in zip(
        NAMES["inner_solver"], cycle(NAMES["linear_solver"]), cycle(CURVATURES), strict=False
    )
]
OPTION = "--model.adaptation.init_args."


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])


def printed(*args: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["fit", *args])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def adaptation(*args: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The adaptation that these arguments come to."""
    return yaml.safe_load(printed(*args, "--print_config", capsys=capsys))["model"]["adaptation"]["init_args"]


@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_every_name_runs(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [arg for arg in SMALL if "inner_solver" not in arg and arg != "3"]
    config = tmp_path / "more.yaml"
    init_args = {"inner_solver": {"max_steps": 2}, "linear_solver": {"rtol": 0.01}, "curvature": {}}
    chosen = {kind: {"class_path": name, "init_args": init_args[kind]} for kind, name in zip(NAMES, names, strict=True)}
    adapt = (
        ["layers.2.*"] if {"Newton", "Exact"} & set(names) else ["*"]
    )  # which know the inverse of a linear head alone
    model = {"adapt": adapt, "adaptation": {"class_path": "Implicit", "init_args": chosen}}
    config.write_text(yaml.safe_dump({"model": model}))
    main(["fit", *small, "--config", str(config), "--trainer.fast_dev_run", "true"])


@pytest.mark.parametrize("kind", NAMES)
def test_help_names_every_choice(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed("--model.adaptation.help", "Implicit", capsys=capsys)
    room = "problem" if kind == "curvature" else kind.removesuffix("_solver")
    for name in NAMES[kind]:
        assert f"imaml_lightning.{room}.{name}" in shown


def test_help_of_a_choice_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(f"{OPTION}inner_solver.help", "Nesterov", capsys=capsys)
    assert "Nesterov" in shown
    assert "--inner_solver.lr" in shown


@pytest.mark.parametrize("where", ["first look", "yaml"])
def test_another_class_begins_with_its_own_defaults(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(CONFIGS / "omniglot_5w1s.yaml")] if where == "yaml" else []
    found = adaptation(*config, f"{OPTION}inner_solver", "Adam", f"{OPTION}linear_solver", "Minres", capsys=capsys)
    assert (found["inner_solver"]["init_args"]["lr"], found["inner_solver"]["init_args"]["max_steps"]) == (0.01, 16)
    assert found["linear_solver"]["init_args"] == {"max_steps": 10, "rtol": 1e-4}


def test_options_outlive_the_same_class_and_parts_outlive_their_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    solver = {"class_path": "imaml_lightning.inner.GradientDescent", "init_args": {"lr": 0.07}}
    mine.write_text(
        yaml.safe_dump({"model": {"adaptation": {"class_path": "Implicit", "init_args": {"inner_solver": solver}}}})
    )
    found = adaptation("--config", str(mine), f"{OPTION}inner_solver", "GradientDescent", capsys=capsys)
    assert found["inner_solver"]["init_args"]["lr"] == 0.07
    found = adaptation("--config", str(mine), "--model.adaptation", "FirstOrder", capsys=capsys)
    assert found["inner_solver"]["init_args"]["lr"] == 0.07
    assert "linear_solver" not in found
