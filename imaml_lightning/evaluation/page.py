"""page: predictions as one HTML file that needs nothing else, the least certain pictures first."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

from imaml_lightning.evaluation.none_of_these import Threshold
from imaml_lightning.evaluation.predictor import Predictor
from imaml_lightning.evaluation.protocols import Calibration

SHOWN = 500  # pictures at most: the least certain ones
_SIDE = 96  # of a thumbnail, in pixels, at most
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; }
.sheet { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 8.5em; font-size: 13px; overflow-wrap: anywhere; }
figure img { width: 6em; height: 6em; object-fit: contain; border: 3px solid #4a7; }
figure.doubtful img { border-color: #d83; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; } small { color: #666; }
"""


def page(
    predictor: Predictor,
    pictures: np.ndarray,
    probabilities: Tensor,
    names: Sequence[str],
    said: str,
    threshold: Threshold | None = None,
    reliable: Calibration | None = None,
    support: Sequence[str] = (),
    ink: bool = False,
) -> str:
    """The page.

    Args:
        predictor: of classes.
        pictures: uint8 ``[example, channel, height, width]`` as the network sees them.
        probabilities: ``[example, class]``, of the predictor.
        names: of each picture.
        said: the report in the terminal.
        threshold: below which a picture is none of the classes.
        reliable: how far the probabilities can be trusted.
        support: names of the support pictures, to show those that were taken for another class when they were left out.
        ink: pictures are shown as dark on light.
    """
    labels = [str(label) for label in predictor.labels or []]
    order = probabilities.amax(1).argsort(stable=True).tolist()
    least = threshold.probability if threshold else 0.0
    shown = order[:SHOWN]
    figures = [_figure(pictures[i], names[i], probabilities[i], labels, least, ink) for i in shown]
    counts = probabilities.argmax(1).bincount(minlength=len(labels)).tolist()
    more = f" The {len(order) - SHOWN:,} surer ones are not shown." if len(order) > SHOWN else ""
    body = [
        "<h1>Predictions</h1>",
        f"<pre>{escape(said)}</pre>",
        _table(("class", "pictures"), [(escape(label), str(n)) for label, n in zip(labels, counts, strict=True)]),
        "<h2>Are the probabilities to be trusted?</h2>" + _reliability(reliable),
        f"<h2>{len(order):,} pictures, the least certain first</h2><p>{_key(threshold)}{more}</p>",
        f'<div class="sheet">{"".join(figures)}</div>',
        *_doubtful(predictor, support, ink),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Predictions</title><style>{_STYLE}</style>'
    return f"{head}<body>{''.join(body)}</body></html>\n"


def _key(threshold: Threshold | None) -> str:
    return "" if threshold is None else f"Orange may be none of the classes: {escape(str(threshold))}."


def _figure(picture: np.ndarray, name: str, p: Tensor, labels: Sequence[str], least: float, ink: bool) -> str:
    best = p.argsort(descending=True)[:2].tolist()
    first, *second = (f"{escape(labels[i])} {float(p[i]):.0%}" for i in best)
    doubtful = ' class="doubtful"' if float(p.max()) < least else ""
    rest = "".join(f"<br><small>or {each}</small>" for each in second)
    return f"<figure{doubtful}>{_image(picture, ink)}<figcaption>{first}{rest}<br><small>{escape(name)}</small></figcaption></figure>"


def _image(picture: np.ndarray, ink: bool) -> str:
    array = 255 - picture if ink else picture
    image = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _reliability(found: Calibration | None) -> str:
    if found is None:
        return "<p>No support picture could be left out in turn: two of a class are needed.</p>"
    rows = [
        (f"{sure:.0%}", f"{right:.0%}", f"{share:.0%}")
        for sure, right, share in zip(
            found.confidence.tolist(), found.accuracy.tolist(), found.share.tolist(), strict=True
        )
        if share > 0
    ]
    error = f"<p>Expected calibration error {found.error:.3f}, of support pictures left out in turn.</p>"
    return error + _table(("sure", "right", "share of the pictures"), rows)


def _doubtful(predictor: Predictor, support: Sequence[str], ink: bool) -> Iterable[str]:
    """Support pictures taken for another class when they were left out: perhaps in the wrong folder."""
    probabilities, truth, places = predictor.left_out()
    labels = [str(label) for label in predictor.labels or []]
    wrong = (probabilities.argmax(1) != truth).nonzero().flatten().tolist() if len(truth) else []
    if not wrong or not support:
        return
    pictures = (predictor.support.x * 255).round().byte().numpy()
    yield f"<h2>{len(wrong):,} support pictures that were taken for another class when left out</h2>"
    yield "<p>Perhaps they are hard, perhaps they are in the wrong folder.</p>"
    figures = (_figure(pictures[places[i]], support[places[i]], probabilities[i], labels, 1.0, ink) for i in wrong)
    yield f'<div class="sheet">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{each}</th>' for each in head)}</tr>{cells}</table>"
