"""Dashboards: what they show is what a run sends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from wandb_stub import ENTITY, KEY, Server, serving

pytest.importorskip("wandb_workspaces")

from imaml_lightning.run import dashboard

FIT = [
    *("fit", "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "2", "--trainer.accelerator", "cpu"),
    *("--data.tasks", "2", "--data.train_batches", "2", "--data.val_episodes", "2", "--data.test_episodes", "2"),
    *("--data.query", "2", "--model.network.init_args.filters", "4", "--model.network.init_args.downsample", "stride"),
]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has seen a complete ``fit``, and then the commands that make a workspace and a report."""
    folder = tmp_path_factory.mktemp("online")
    with serving() as server:
        environment = os.environ | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
            "HOME": str(folder),  # no key or setting of the person who runs the tests
            "NO_PROXY": "127.0.0.1",
        }
        dashboard_command = ["imaml_lightning.run.dashboard", "--entity", ENTITY]
        for module, *args in (["imaml_lightning", *FIT], dashboard_command, [*dashboard_command, "--report"]):
            command = [sys.executable, "-m", module, *args]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        yield server


def spec(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    dashboard.main(["--entity", ENTITY, "--dry-run", *args])
    return json.loads(capsys.readouterr().out)


def metrics_in(node: Any) -> set[str]:
    """All metrics of all line plots, wherever they are in the JSON."""
    if isinstance(node, dict):
        here = set(node.get("metrics") or []) if node.get("chartTitle") else set()
        return here.union(*map(metrics_in, node.values()))
    return set().union(*map(metrics_in, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("kind", [(), ("--report",)], ids=["workspace", "report"])
def test_dry_run_prints_every_panel(kind: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    printed = spec(capsys, *kind)
    assert metrics_in(printed) == dashboard.metrics()
    assert all(name in json.dumps(printed) for name in ("Learning", "Adaptation", "Solver health", "Speed and memory"))


def test_a_run_sends_all_that_the_dashboard_shows(online: Server) -> None:
    sent = {name for row in online.history for name in row}
    assert dashboard.metrics() <= sent
    assert dashboard.STEP in sent
    assert {*dashboard.PICTURES} <= sent
    assert {name.split("/")[-1].split("_")[0] for name in online.files if name.endswith(".png")} >= {
        key.split("/")[-1] for key in dashboard.PICTURES
    }
    assert {"model", "data", "trainer"} <= online.config.keys()
    assert online.finished


@pytest.mark.parametrize(("number", "kind"), [(0, ()), (1, ("--report",))], ids=["workspace", "report"])
def test_the_command_saves_what_the_dry_run_prints(
    online: Server, number: int, kind: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    view = online.views[number]
    assert len(online.views) == 2
    assert (view["entityName"], view["projectName"]) == (ENTITY, dashboard.PROJECT)
    assert metrics_in(json.loads(view["spec"])) == metrics_in(spec(capsys, *kind)) == dashboard.metrics()
