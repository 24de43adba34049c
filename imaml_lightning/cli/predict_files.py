"""``predict --support … --query …``: a checkpoint adapted to the user's folder or table, predictions to a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from imaml_lightning.cli.checkpoints import named_checkpoints
from imaml_lightning.cli.function_command import run_function
from imaml_lightning.cli.own_pictures import check_folders, picture_reader, read_query, read_support
from imaml_lightning.cli.picture_report import Trust, write_page
from imaml_lightning.data.features import Features
from imaml_lightning.data.table import NO_LABEL, SUFFIXES, read_table
from imaml_lightning.errors import DataError, UsageError
from imaml_lightning.evaluation.none_of_these import Threshold
from imaml_lightning.evaluation.page import page
from imaml_lightning.evaluation.predictor import Predictor, adapt
from imaml_lightning.inner import InnerSolver
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.whole_file import whole_file


def main(args: Sequence[str]) -> None:
    """The command line of :func:`predict_files`."""
    about = (
        "Predict examples of your own from a few labelled ones. Without --support and --query, predict writes the outputs "
        "for the query sets of the checkpoint's own test episodes; then its options are those of test (see test --help)."
    )
    run_function("predict", predict_files, about, args)


def predict_files(
    ckpt_path: str | list[str],
    support: str,
    query: str,
    target: str | None = None,
    predictions: str = "predictions.csv",
    name: str | None = None,
    output: str = "runs",
    inner_solver: InnerSolver | None = None,
    report: str | None = None,
    leave_out: bool = False,
    trust: str | None = None,
) -> Predictor:
    """Adapt a checkpoint to a support set and predict a query set; print whether adaptation helped.

    Pictures: ``support/class/*.png``, and any pictures in ``query``. Tables: ``support`` has the columns of the training
    table, ``query`` the same without the target.

    Args:
        ckpt_path: a .ckpt file, or several, ``[a.ckpt, b.ckpt]``, whose mean is taken; or best or last with --name.
        support: folder of folders, or table, with labels.
        query: folder or table to predict.
        target: column of the labels in the support table; None means that of the training table.
        predictions: the CSV file to write.
        name: of the experiment, for best and last.
        output: where its runs are.
        inner_solver: in place of the one of the training, such as LBFGS, with its options.
        report: the HTML page to write, of pictures; None means beside the predictions, predictions.html.
        leave_out: leave out pictures that cannot be read, and name them; else they are refused.
        trust: packages, joined by commas, whose classes the checkpoint may name.

    Raises:
        UsageError: a file or folder is missing, damaged, or not of the checkpoint's kind.
    """
    found = named_checkpoints(ckpt_path, output, name)
    tables = Path(support).suffix.lower() in SUFFIXES
    read = (_read_tables if tables else _read_folders)(found.reading, support, query, target, leave_out)
    learners = found.learners(trust)
    for learner in learners:
        _solve_by(inner_solver, learner)
    predictor = adapt(learners, read.x, read.y, read.labels)
    outputs, path, scaler = predictor(read.query), Path(predictions), found.reading.get("scaler")
    trusted = None if tables else Trust.of(predictor)
    _write(path, predictor, outputs, read, scaler, trusted.threshold if trusted else None)
    print(said := "\n".join([*_said(predictor, read.query, scaler), *(trusted.lines(outputs) if trusted else [])]))
    print(f"predictions      {len(read.query)} in {predictions}")
    if trusted:
        shown, ink = Path(report) if report else path.with_suffix(".html"), bool(found.reading["ink"])
        _write_report(shown, predictor, outputs, read, trusted, said, ink)
    return predictor


def _write_report(
    path: Path, predictor: Predictor, outputs: Tensor, read: Read, trusted: Trust, said: str, ink: bool
) -> None:
    names, threshold, reliable = read.known_by["file"], trusted.threshold, trusted.reliable
    write_page(path, page(predictor, read.query, outputs, names, said, threshold, reliable, read.support, ink))
    print(f"report           {path}, the least certain pictures first")


def _said(predictor: Predictor, asked: np.ndarray, scaler: Mapping[str, Any] | None) -> list[str]:
    """Whether adaptation helped, by which protocol, and in which units."""
    lines = [str(predictor.report())]
    if protocols := _protocols(predictor, asked):
        lines.append(f"protocol         {protocols}")
    if scaler:
        scale = scaler["scale"][0]
        lines.append(f"units            errors above are in units of the training target's deviation, {scale:.4g}")
    return lines


def _solve_by(solver: InnerSolver | None, learner: MetaLearner) -> None:
    """From now on it adapts by this inner solver, if one is given."""
    adaptation: Any = learner.adaptation
    if solver is None:
        return
    if not hasattr(adaptation, "inner_solver"):
        raise UsageError(
            f"{type(adaptation).__name__} has no inner solver: leave out --inner_solver, its steps are as trained"
        )
    adaptation.inner_solver = solver


def _protocols(predictor: Predictor, x: np.ndarray) -> str:
    """How the predictions came about, where it makes a difference whether query examples are normalised together."""
    if all(learner.protocol == "inductive" for learner in predictor.learners):
        return ""
    alone, together = predictor(x), predictor.together(x)
    if predictor.labels is None:
        differ = f"values would change by {(together - alone).abs().mean():.3g} in the mean"
    else:
        changed = int((alone.argmax(1) != together.argmax(1)).sum())
        differ = f"{changed} of {len(alone)} predictions would be others"
    return f"inductive, each example beside the support set alone; all in one batch (transductive), {differ}"


class Read(NamedTuple):
    """What was read of a person's own examples."""

    x: np.ndarray
    y: np.ndarray
    query: np.ndarray
    known_by: dict[str, list[str]]  # the columns that query examples are known by
    labels: list[str] | None = None
    support: Sequence[str] = ()  # names of the support examples


def _read_folders(
    reading: Mapping[str, Any], support: str, query: str, target: str | None, leave_out: bool = False
) -> Read:
    """Support pictures and classes, query pictures, and the column that names them."""
    reader = picture_reader(reading, support, leave_out)
    check_folders(support, query)
    x, y, known = read_support(reader, support)
    of_query, asked = read_query(reader, query)
    reader.report()
    names = {"file": [str(file.relative_to(query)) for file in asked]}
    return Read(x, y, of_query, names, support=[str(file.relative_to(support)) for file in known])


def _read_tables(
    reading: Mapping[str, Any], support: str, query: str, target: str | None, leave_out: bool = False
) -> Read:
    """Support rows and targets, query rows, and the columns that were not used, to know rows by."""
    if "features" not in reading:
        raise UsageError(f"this checkpoint was not trained on a table, and {support} is one: give folders of pictures")
    features = Features(**reading["features"])
    known, asked = read_table(support), read_table(query)
    target = target or reading.get("target")
    if target is None:
        raise UsageError(f"which column of {support} holds the labels: name it by --target")
    y: np.ndarray = np.array(known.column(target))
    if "scaler" in reading:
        y = Features(**{**reading["scaler"], "names": [target]}).of(known)[:, 0]
    elif empty := [place for place, label in enumerate(known[target]) if label.lower() in NO_LABEL]:
        raise DataError(
            f"{support}: column {target} is empty in {known.places(empty)}: fill the cells, or take the rows out."
        )
    index = {"row": [str(i + 1) for i in range(len(next(iter(asked.values()))))]}
    index |= {name: cells for name, cells in asked.items() if name not in (*features.names, target)}
    return Read(features.of(known), y, features.of(asked), index, reading.get("labels"))


def _write(
    path: Path,
    predictor: Predictor,
    outputs: Tensor,
    read: Read,
    scaler: Mapping[str, Any] | None,
    threshold: Threshold | None,
) -> None:
    """One row for each query example: what it is known by, the prediction, and probabilities or the spread; and whether it is
    none of the classes, where that can be told."""
    values = outputs.double().numpy()
    if predictor.labels is not None:
        header = ["prediction", *(f"p({label})" for label in predictor.labels)]
        rows = [[predictor.labels[int(p.argmax())], *(f"{value:.6f}" for value in p)] for p in values]
        if threshold:
            header.append("none of these")
            rows = [
                [*row, "yes" if p.max() < threshold.probability else "no"] for row, p in zip(rows, values, strict=True)
            ]
    else:
        scale, mean = (scaler["scale"][0], scaler["mean"][0]) if scaler else (1.0, 0.0)
        spread = predictor.spread(read.query).double().numpy() * scale
        header = [name for i in range(values.shape[1]) for name in (_numbered("mean", i), _numbered("spread", i))]
        numbers = np.stack([values * scale + mean, spread], 2).reshape(len(values), -1)
        rows = [[f"{value:.8g}" for value in row] for row in numbers]
    index = read.known_by
    try:
        with whole_file(path, "x", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*index, *header])
            writer.writerows([*names, *row] for names, row in zip(zip(*index.values(), strict=True), rows, strict=True))
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another file by --predictions") from error


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}_{number}"
