"""Exporting: a classifier in a file that runs without this package, compared with the predictor before it is written."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imaml_lightning.errors import UsageError
from imaml_lightning.evaluation.classifier import Classifier
from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.learner.whole_file import whole_file

#: Most that a probability may differ from the predictor's.
TOLERANCE = 1e-4
_COMPARED = 64  # pictures of the support set, at most

#: Probabilities ``[example, class]`` of pictures ``[example, channel, height, width]``, uint8.
Run = Callable[[Tensor], Tensor]


def export(predictor: Predictor, to: str | Path, pictures: Tensor, reading: Mapping[str, Any] | None = None) -> float:
    """Write ``to``: ``.onnx``, for onnxruntime and others, or ``.pt2``, for ``torch.export.load``.

    Input ``pictures``: uint8 ``[example, channel, height, width]`` of any number of examples, turned, cropped and resized
    already, but neither scaled nor normalised; output ``probabilities [example, class]``. The file's metadata has
    ``classes`` (JSON), and ``pictures``, how they are to be read.

    Args:
        predictor: adapted to pictures.
        to: the file.
        pictures: some, uint8, of which the file has to say what the predictor says.
        reading: how pictures are read (see ``EpisodeSource.reading``).

    Returns:
        The largest difference of a probability to the predictor's.

    Raises:
        UsageError: the predictor is none of pictures, a package is missing, or the file would say something else.
    """
    path, reading = Path(to), dict(reading or {})
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path} has no known kind: name a file that ends with {' or '.join(_WRITERS)}")
    classifier = Classifier(predictor, bool(reading.get("ink"))).eval()
    spread = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), _COMPARED)).round().astype(int))
    compared = pictures[torch.from_numpy(spread)]
    compared = (
        compared if len(compared) > 1 else compared.repeat(2, 1, 1, 1)
    )  # one picture would make the file one of one
    content, run = _WRITERS[path.suffix](classifier, compared[:2], _metadata(predictor, compared, reading))
    difference = float((run(compared) - predictor(compared)).abs().max())
    if not difference <= TOLERANCE:
        raise UsageError(
            f"{path} is not written: its probabilities differ from the predictor's by {difference:.2g}; give the other kind of file"
        )
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another file by --to") from error
    return difference


def _metadata(predictor: Predictor, pictures: Tensor, reading: Mapping[str, Any]) -> dict[str, str]:
    channels, height, width = pictures.shape[1:]
    how = {
        "channels": "grey" if channels == 1 else "RGB",
        "height": height,
        "width": width,
        "before": "turned as EXIF says, transparency on white, centre cropped to the aspect ratio, resized bilinearly",
        "white": reading.get("white"),
        "inside": "inversion of light drawings, scaling, normalisation"
        if reading.get("ink")
        else "scaling, normalisation",
    }
    return {"classes": json.dumps([str(label) for label in predictor.labels or []]), "pictures": json.dumps(how)}


def _onnx(classifier: Classifier, example: Tensor, metadata: Mapping[str, str]) -> tuple[bytes, Run]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UsageError(f"an .onnx file needs {error.name}: pip install 'imaml_lightning[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program: Any = torch.onnx.export(
            classifier,
            (example,),
            input_names=["pictures"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("example")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0])


def _pt2(classifier: Classifier, example: Tensor, metadata: Mapping[str, str]) -> tuple[bytes, Run]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes .* were assigned")  # torch's own LSTM does so
        program = torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim("example")},))
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={f"{key}.json": value for key, value in metadata.items()})
    stream.seek(0)
    again = torch.export.load(stream).module()
    return stream.getvalue(), lambda x: again(x)


_WRITERS = {".onnx": _onnx, ".pt2": _pt2}
