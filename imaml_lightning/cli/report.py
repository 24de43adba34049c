"""What is printed at the end of a command, and the file of predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from imaml_lightning.data import EpisodeDataModule, Split
from imaml_lightning.data.setting import Setting
from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.protocols import evaluate, one_at_a_time
from imaml_lightning.learner.advice import REMEDY, advice
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.whole_file import whole_file


def described(learner: MetaLearner, data: EpisodeDataModule, trainer: Trainer, trains: bool) -> str:
    """``Implicit of Conv4 (28,805 parameters) on Glyphs, 5-way 1-shot, on cpu``."""
    parameters = sum(p.numel() for p in learner.network.parameters())
    settings = [data.training] if trains else [*data.settings.values()] or [data.evaluation]
    sizes = ", ".join(_size(setting, data.source.task) for setting in settings)
    ranks = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    return (
        f"{type(learner.adaptation).__name__} of {type(learner.network).__name__} ({parameters:,} parameters) on "
        f"{type(data.source).__name__}, {sizes}, on {trainer.strategy.root_device.type}{ranks}"
    )


def _size(setting: Setting, task: str) -> str:
    shots = str(setting.shot) if len(setting.shots) == 1 else f"{setting.shots[0]} to {setting.shot}"
    return f"{setting.way}-way {shots}-shot" if task == "classification" else f"{shots}-shot"


def reached(
    learner: MetaLearner, data: EpisodeDataModule, stage: str, metrics: Mapping[str, Tensor | float]
) -> dict[str, str]:
    """What was reached, a line for each setting of the test, and what adaptation did."""
    episodes = getattr(data, f"{stage}_episodes")
    settings = list(data.settings) if stage == "test" else []
    solves = hasattr(learner.adaptation, "inner_solver")
    said = {name: f"{line}, {episodes} episodes" for name, line in figures_lines(metrics, stage, settings).items()}
    for each in [f"{stage}/{setting}" for setting in settings] or [stage]:
        said |= adaptation_lines(metrics, each, episodes, solves)
    return said


def alone(learner: MetaLearner, data: EpisodeDataModule, trainer: Trainer, stage: str) -> dict[str, str]:
    """The figure of ``predict``, where every query example is normalised beside the support set alone, if it is another
    than that of the whole query set; on fewer episodes, since it costs (support + 1) passes for each example."""
    if learner.protocol != "transductive":
        return {}
    split: Split = "val" if stage == "val" else "test"
    available: int = getattr(data, f"{stage}_episodes")
    way, shot, query = data.evaluation.most
    episodes = min(available, max(20, min(100, 200_000 // (way * query * (way * shot + 1)))))
    device, move = trainer.strategy.root_device, trainer.strategy.batch_to_device
    learner = learner.to(device).eval()
    evaluation = evaluate(learner, data, split, episodes, lambda of, e: one_at_a_time(of, move(e)).cpu())
    score, half = evaluation.mean()
    if data.source.task == "classification":
        words = f"accuracy {100 * score:.2f} ± {100 * half:.2f} %"
    else:
        words = f"mean squared error {score:.4f} ± {half:.4f}"
    return {"one at a time": f"{words} (95% confidence, inductive), the first {episodes} episodes"}


def figures_line(metrics: Mapping[str, Tensor | float], stage: str) -> str:
    """``accuracy 97.31 ± 0.24 % (transductive)`` for classification, ``mean squared error …`` for regression."""
    for name, value in metrics.items():
        metric, _, protocol = name.removeprefix(f"{stage}/").partition("_")
        if metric == "accuracy" and protocol in ("transductive", "inductive"):
            return f"accuracy {100 * value:.2f} ± {100 * metrics[f'{name}_ci95']:.2f} % (95% confidence, {protocol})"
    for name in ("accuracy", "loss"):
        if f"{stage}/{name}" in metrics:
            return f"{name} {metrics[f'{stage}/{name}']:.4f} ± {metrics[f'{stage}/{name}_ci95']:.4f} (95% confidence)"
    return "no figures"


def adaptation_lines(metrics: Mapping[str, Tensor | float], stage: str, episodes: int, solves: bool) -> dict[str, str]:
    """What adaptation did to the query set, before → after, in means and medians; how the inner problems ended, and advice.

    ``solves``: the adaptation means to solve them; see ``advice``.
    """
    start = f"{stage}/"
    known = {name.removeprefix(start): float(value) for name, value in metrics.items() if name.startswith(start)}
    setting = stage.partition("/")[2]
    suffix = f" {setting}" if setting else ""
    changes = []
    for name in ("loss", "accuracy"):
        after = next((known[n] for n in (name, f"{name}_transductive", f"{name}_inductive") if n in known), None)
        if after is not None and f"{name}_before" in known:
            medians = f"medians {known[f'{name}_before_median']:.4g} → {known[f'{name}_median']:.4g}"
            changes.append(f"{name} {known[f'{name}_before']:.4g} → {after:.4g} ({medians})")
    lines = {f"adaptation{suffix}": ", ".join(changes)} if changes else {}
    if "inner_diverged" in known:
        stationarity, growth = known["inner_stationarity_median"], known["inner_growth_median"]
        said = f"median ‖∇G‖/‖∇L‖ = {stationarity:.2g}, {advice(stationarity, growth, False, solves)}"
        if diverged := round(known["inner_diverged"] * episodes):
            said = f"{diverged} of {episodes} diverged, their loss rose: {REMEDY}; {said.removesuffix(f': {REMEDY}')}"
        lines[f"inner problems{suffix}"] = said
    return lines


def figures_lines(metrics: Mapping[str, Tensor | float], stage: str, settings: Sequence[str]) -> dict[str, str]:
    """``figures_line`` of each of the settings that the stage was about; of the stage itself where there are none."""
    stages = [f"{stage}/{setting}" for setting in settings] or [stage]
    return {name.replace("/", " "): figures_line(metrics, name) for name in stages}


def print_summary(lines: dict[str, str]) -> None:
    """A small table at the end of a command: what was reached, and where everything lies."""
    for name, value in lines.items():
        print(f"{name:<15} {value}")


def write_predictions(path: Path, outputs: Sequence[Tensor]) -> None:
    """Outputs ``[task, example, output]`` as CSV: episode, example, the largest output's number, and all outputs.

    Nothing is predicted where outputs are not numbers: of padding, and of a task whose adaptation diverged.

    Raises:
        UsageError: if the file cannot be written.
    """
    width = outputs[0].shape[-1]
    try:
        with whole_file(path, "x", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["episode", "example", "prediction", *(f"output_{i}" for i in range(width))])
            episode = 0
            for batch in outputs:
                for task in batch.float().cpu():
                    for number, output in enumerate(task):
                        best: float | str = int(output.argmax()) if width > 1 else float(output[0])
                        best = "" if output.isnan().any() else best
                        rows.writerow([episode, number, best, *(f"{value:.6g}" for value in output.tolist())])
                    episode += 1
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): run in a folder that can be written to") from error
