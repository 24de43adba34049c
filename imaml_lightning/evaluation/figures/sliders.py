"""Pictures with sliders where a notebook can show them, and still ones elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable

from matplotlib.figure import Figure


def sliders(draw: Callable[..., Figure], **ranges: tuple[float, float, float]) -> Figure | None:
    """``draw`` with one slider for each option of it.

    Args:
        draw: makes the picture from the options' values.
        ranges: option = (least, greatest, start).

    Returns:
        None where the sliders are shown; the picture at the starting values without ipywidgets, or with the variable
        ``IMAML_STILL`` set (as in the notebooks on disk, which no kernel keeps alive).
    """
    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None
    if ipywidgets is None or os.environ.get("IMAML_STILL"):
        return draw(**{name: start for name, (_, _, start) in ranges.items()})
    options = {
        name: ipywidgets.FloatSlider(value=start, min=low, max=high, step=(high - low) / 50, continuous_update=False)
        for name, (low, high, start) in ranges.items()
    }
    ipywidgets.interact(draw, **options)
    return None
