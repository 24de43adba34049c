"""``predict --support … --query …``: a checkpoint adapted to the user's folder or table, predictions to a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imaml_lightning.cli.arguments import class_first, import_only, packages
from imaml_lightning.cli.complaint import OneSentence
from imaml_lightning.cli.config import peek_options
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.data.features import Features
from imaml_lightning.data.images import PictureReader, class_folders, image_files, warn_of_other_files
from imaml_lightning.data.table import NO_LABEL, SUFFIXES, read_table
from imaml_lightning.errors import DataError, UsageError
from imaml_lightning.evaluation.loading import load
from imaml_lightning.evaluation.predictor import Predictor, adapt
from imaml_lightning.inner import InnerSolver
from imaml_lightning.learner.checkpoint import find_checkpoint
from imaml_lightning.learner.meta_learner import MetaLearner
from imaml_lightning.learner.whole_file import whole_file


def main(args: Sequence[str]) -> None:
    """The command line of :func:`predict_files`."""
    about = (
        "Predict examples of your own from a few labelled ones. Without --support and --query, predict writes the outputs "
        "for the query sets of the checkpoint's own test episodes; then its options are those of test (see test --help)."
    )
    parser = OneSentence(prog="imaml-lightning predict", description=about)
    parser.add_function_arguments(predict_files)
    parser.add_argument("--traceback", action="store_true", help="Show where an error comes from.")
    given = class_first(args)
    import_only(peek_options(["predict", *given]).get("trust"))
    options = vars(parser.instantiate(parser.parse_args(given)))
    del options["traceback"]  # main's
    predict_files(**options)


def predict_files(
    ckpt_path: str | list[str],
    support: str,
    query: str,
    target: str | None = None,
    predictions: str = "predictions.csv",
    name: str | None = None,
    output: str = "runs",
    inner_solver: InnerSolver | None = None,
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
        trust: packages, joined by commas, whose classes the checkpoint may name.

    Raises:
        UsageError: a file or folder is missing, damaged, or not of the checkpoint's kind.
    """
    given = [ckpt_path] if isinstance(ckpt_path, str) else ckpt_path
    found = [find_checkpoint(one, output, name or "") for one in given]
    saved = [_reading(path, checkpoint) for path, checkpoint in found]
    if any(one != saved[0] for one in saved):
        raise UsageError("the checkpoints read their inputs in different ways: give ones trained on the same data")
    read = _read_tables if Path(support).suffix.lower() in SUFFIXES else _read_folders
    x, y, asked, index, labels = read(saved[0], support, query, target)
    learners = [load(path, packages(trust)) for path, _ in found]
    if inner_solver is not None:
        for learner in learners:
            _solve_by(inner_solver, learner)
    predictor = adapt(learners, x, y, labels)
    _write(Path(predictions), predictor, asked, index, saved[0].get("scaler"))
    _say(predictor, asked, saved[0].get("scaler"))
    print(f"predictions      {len(asked)} in {predictions}")
    return predictor


def _say(predictor: Predictor, asked: np.ndarray, scaler: Mapping[str, Any] | None) -> None:
    """Whether adaptation helped, by which protocol, and in which units."""
    print(predictor.report())
    if protocols := _protocols(predictor, asked):
        print(f"protocol         {protocols}")
    if scaler:
        scale = scaler["scale"][0]
        print(f"units            errors above are in units of the training target's deviation, {scale:.4g}")


def _solve_by(solver: InnerSolver, learner: MetaLearner) -> None:
    adaptation: Any = learner.adaptation
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


def _reading(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """How the checkpoint's source reads raw input; see ``EpisodeSource.reading``."""
    state = checkpoint.get(EpisodeDataModule.__qualname__)
    if not state or not state["reading"]:
        raise UsageError(f"checkpoint {path} does not say how its inputs are read: train one on pictures or a table")
    return state["reading"]


#: Support inputs and targets, query inputs, the columns that query examples are known by, and the labels if given.
Read = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, list[str]], list[str] | None]


def _read_folders(reading: Mapping[str, Any], support: str, query: str, target: str | None) -> Read:
    """Support pictures and classes, query pictures, and the column that names them."""
    if len(reading.get("shape", ())) != 3:
        raise UsageError(f"this checkpoint was not trained on images, and {support} is no table: give a .csv file")
    for folder in (support, query):
        if not Path(folder).is_dir():
            raise UsageError(f"{folder} is not a folder: give the folder of your pictures (or a .csv table)")
    advice = "give a folder with one folder for each class."
    files = [(file, at.name) for at in class_folders(Path(support), advice) for file in image_files(at)]
    asked = image_files(Path(query))
    warn_of_other_files([Path(query)], Path(query))
    if not files:
        raise UsageError(f"no pictures in {support}: put them into a folder for each class, {support}/class/*.png")
    if not asked:
        raise UsageError(f"no pictures in {query}: put there what is to be predicted")

    reader = PictureReader(reading["shape"], reading["ink"], reading.get("white"))
    x, of_query = reader.read([file for file, _ in files]), reader.read(asked)
    reader.report()
    names = {"file": [str(file.relative_to(query)) for file in asked]}
    return x, np.array([name for _, name in files]), of_query, names, None


def _read_tables(reading: Mapping[str, Any], support: str, query: str, target: str | None) -> Read:
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
    return features.of(known), y, features.of(asked), index, reading.get("labels")


def _write(
    path: Path, predictor: Predictor, x: np.ndarray, index: Mapping[str, list[str]], scaler: Mapping[str, Any] | None
) -> None:
    """One row for each query example: what it is known by, the prediction, and probabilities or the spread."""
    outputs = predictor(x).double().numpy()
    if predictor.labels is not None:
        header = ["prediction", *(f"p({label})" for label in predictor.labels)]
        rows = [[predictor.labels[int(p.argmax())], *(f"{value:.6f}" for value in p)] for p in outputs]
    else:
        scale, mean = (scaler["scale"][0], scaler["mean"][0]) if scaler else (1.0, 0.0)
        spread = predictor.spread(x).double().numpy() * scale
        header = [name for i in range(outputs.shape[1]) for name in (_numbered("mean", i), _numbered("spread", i))]
        values = np.stack([outputs * scale + mean, spread], 2).reshape(len(outputs), -1)
        rows = [[f"{value:.8g}" for value in row] for row in values]
    try:
        with whole_file(path, "x", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*index, *header])
            writer.writerows([*names, *row] for names, row in zip(zip(*index.values(), strict=True), rows, strict=True))
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another file by --predictions") from error


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}_{number}"
