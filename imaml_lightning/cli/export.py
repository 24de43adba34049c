"""``export --support … --to …``: a checkpoint adapted to the user's folder, as a file that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from imaml_lightning.cli.checkpoints import named_checkpoints
from imaml_lightning.cli.function_command import run_function
from imaml_lightning.cli.own_pictures import check_folders, picture_reader, read_support
from imaml_lightning.evaluation.exporting import export
from imaml_lightning.evaluation.none_of_these import none_of_these
from imaml_lightning.evaluation.predictor import adapt


def main(args: Sequence[str]) -> None:
    """The command line of :func:`export_file`."""
    about = (
        "Adapt a checkpoint to labelled pictures, and write the classifier as a file that runs without this package."
    )
    run_function("export", export_file, about, args)


def export_file(
    ckpt_path: str | list[str],
    support: str,
    to: str = "classifier.onnx",
    name: str | None = None,
    output: str = "runs",
    leave_out: bool = False,
    trust: str | None = None,
) -> None:
    """Adapt a checkpoint to a support set and write the classifier, once it says what ``predict`` says.

    Args:
        ckpt_path: a .ckpt file, or several, ``[a.ckpt, b.ckpt]``, whose mean is taken; or best or last with --name.
        support: folder of folders of pictures, ``support/class/*.png``.
        to: the file: .onnx for onnxruntime and others, .pt2 for torch.export.
        name: of the experiment, for best and last.
        output: where its runs are.
        leave_out: leave out pictures that cannot be read, and name them; else they are refused.
        trust: packages, joined by commas, whose classes the checkpoint may name.

    Raises:
        UsageError: a file or folder is missing or damaged, or the file would not say what ``predict`` says.
    """
    found = named_checkpoints(ckpt_path, output, name)
    reader = picture_reader(found.reading, support, leave_out)
    check_folders(support)
    x, y, _ = read_support(reader, support)
    reader.report()
    predictor = adapt(found.learners(trust), x, y)
    difference = export(predictor, to, torch.from_numpy(x), found.reading)
    channels, height, width = x.shape[1:]
    print(predictor.report())
    print(f"classes          {', '.join(map(str, predictor.labels or []))}")
    if threshold := none_of_these(predictor):
        print(f"none of these    {threshold}")
    print(
        f"input            pictures, uint8 [example, {channels}, {height}, {width}]; scaling and normalisation are inside"
    )
    print(f"compared         probabilities of support pictures differ from predict's by {difference:.1g} at most")
    print(f"classifier       {to}")
