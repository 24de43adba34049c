"""A Weights & Biases workspace, and a report that compares algorithms, as code.

    python -m imaml_lightning.run.dashboard --entity ENTITY [--project PROJECT] [--report] [--dry-run]

creates the workspace (or the report) and prints its address; ``--dry-run`` prints its JSON and touches no network.
Needs ``pip install wandb-workspaces``.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

from imaml_lightning.errors import UsageError

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError as error:
    raise UsageError("dashboards need wandb-workspaces: pip install wandb-workspaces") from error

PROJECT = "imaml_lightning"
STEP = "trainer/global_step"


class Lines(NamedTuple):
    """A panel of lines over meta-steps."""

    title: str
    metrics: tuple[str, ...]
    log: bool = False
    share: bool = False  # stacked shares, together 1


RESULTS = ("converged", "step_limit", "stalled", "indefinite", "breakdown", "nonfinite")
#: Section -> panels. Every metric named here is logged by a run; accuracy only where targets are classes.
SECTIONS: dict[str, tuple[Lines, ...]] = {
    "Learning": (
        Lines("query accuracy, adapted", ("train/accuracy", "val/accuracy")),
        Lines("query loss, adapted", ("train/loss", "val/loss"), log=True),
        Lines("norm of the meta-gradient", ("train/gradient_norm",), log=True),
    ),
    "Adaptation": (
        Lines("accuracy at θ and at φ", ("val/accuracy_before", "val/accuracy")),
        Lines("loss at θ and at φ", ("val/loss_before", "val/loss"), log=True),
        Lines("strength λ", ("train/strength",)),
    ),
    "Solver health": (
        Lines("inner solve: ‖∇G‖ / ‖∇L‖", ("train/inner_stationarity", "val/inner_stationarity"), log=True),
        Lines("linear solve: ‖Au − v‖ / ‖v‖", ("train/linear_residual",), log=True),
        Lines("steps", ("train/inner_steps", "train/linear_steps")),
        Lines("how inner solves ended", tuple(f"train/inner_{code}" for code in RESULTS), share=True),
        Lines("how linear solves ended", tuple(f"train/linear_{code}" for code in RESULTS), share=True),
        Lines("meta-steps skipped", ("train/skipped_steps",)),
    ),
    "Speed and memory": (
        Lines("seconds a meta-step", ("train/seconds",)),
        Lines("peak memory, MB", ("train/peak_memory_mb",)),
        Lines("outer learning rate", ("lr",)),
    ),
}
PICTURES = tuple(f"pictures/{name}" for name in ("episode", "adaptation", "solves", "learning"))


def workspace(entity: str, project: str) -> ws.Workspace:
    """Panels for learning, adaptation, solver health, speed and memory, and the pictures of the runs."""
    sections = [ws.Section(name, panels=[_panel(p) for p in panels]) for name, panels in SECTIONS.items()]
    sections.append(ws.Section("Pictures", panels=[wr.MediaBrowser(media_keys=[key]) for key in PICTURES]))
    for section in sections:
        section.is_open = True
    return ws.Workspace(entity=entity, project=project, name="imaml_lightning", sections=sections)


def report(entity: str, project: str) -> wr.Report:
    """A report that compares algorithms: runs grouped by their adaptation, with what to look at in each panel."""
    runs = wr.Runset(name="by algorithm", groupby=["config.model.adaptation.class_path"])
    grids: list[Any] = []
    for name, advice in _ADVICE.items():
        grids += [wr.H2(name), wr.P(advice), wr.PanelGrid(runsets=[runs], panels=[_panel(p) for p in SECTIONS[name]])]
    return wr.Report(
        project,
        entity,
        title="Algorithms compared",
        description="Members of the MAML family on the same episodes.",
        blocks=[wr.TableOfContents(), *grids],
    )


_ADVICE = {
    "Learning": "Compare at equal meta-steps here, and at equal seconds by choosing relative time as the x axis.",
    "Adaptation": "The distance between the two lines is what adaptation is worth.",
    "Solver health": "An implicit meta-gradient deserves the name where both residuals are below about 0.1.",
    "Speed and memory": "Unrolled members grow in memory with their inner steps; implicit ones do not.",
}


def metrics() -> set[str]:
    """Every metric that the panels show."""
    return {metric for panels in SECTIONS.values() for panel in panels for metric in panel.metrics}


def _panel(lines: Lines) -> wr.LinePlot:
    return wr.LinePlot(
        title=lines.title,
        x=STEP,
        y=list(lines.metrics),
        log_y=lines.log or None,
        plot_type="stacked-area" if lines.share else None,
    )


def main(args: list[str] | None = None) -> None:
    """Create the workspace or the report, or print what would be created."""
    parser = argparse.ArgumentParser(
        prog="python -m imaml_lightning.run.dashboard", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--entity", required=True, help="user or team in Weights & Biases")
    parser.add_argument("--project", default=PROJECT)
    parser.add_argument("--report", action="store_true", help="the report in place of the workspace")
    parser.add_argument("--dry-run", action="store_true", help="print JSON, touch no network")
    options = parser.parse_args(args)
    made = (report if options.report else workspace)(options.entity, options.project)
    if options.dry_run:
        # The two classes have no public way to their JSON.
        spec = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
        json.dump(spec, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        made.save()
        print(made.url)


if __name__ == "__main__":
    main()
