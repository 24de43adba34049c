"""Contact sheet: one episode's support images, and what became of its query images."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from imaml_lightning.episode import IGNORED, Episode
from imaml_lightning.evaluation.figures.style import RIGHT, WRONG

SHOWN = 6  # query images of a class, at most
WIDE, HIGH = 1.15, 1.3  # of a place on the sheet, in which an image is 1 wide and 1 high; all in inches


def contact_sheet(episode: Episode, before: Tensor, after: Tensor, task: int = 0) -> Figure:
    """One task of ``episode``: a support image of each class that has one, and query images with the predicted class and
    its probability, right or wrong.

    Args:
        episode: images as floats, one channel or three.
        before: logits ``[task, example, output]`` on the query set at θ.
        after: the same at φ.
        task: which task of the episode.
    """
    support, query = episode
    classes = [number for number in sorted(set(support.y[task].tolist())) if number != IGNORED]
    way = len(classes)
    shown = min(SHOWN, max(int((query.y[task] == number).sum()) for number in classes))
    guesses, chances = before[task].argmax(-1), after[task].softmax(-1)
    # One pair of axes for all: runs draw sheets while they train, and a pair for each image takes seconds.
    right, bottom = WIDE * (shown + 1), HIGH * way
    figure = Figure(figsize=(right + 0.3, bottom + 0.3))
    axes = figure.add_axes((0, 0, 1, 1))
    for row, number in enumerate(classes):
        top = HIGH * row
        _image(axes, support.x[task, support.y[task] == number][0], 0, top, "black")
        axes.text(-0.05, top + 0.5, f"class {number}", fontsize=9, rotation=90, ha="right", va="center")
        mine = (query.y[task] == number).nonzero().flatten()[:shown].tolist()
        for column, example in enumerate(mine, start=1):
            guess = int(chances[example].argmax())
            colour = RIGHT if guess == number else WRONG
            _image(axes, query.x[task, example], WIDE * column, top, colour)
            label = f"{int(guesses[example])} → {guess}   {chances[example, guess]:.0%}"
            axes.text(WIDE * column + 0.5, top + 1.03, label, fontsize=9, color=colour, ha="center", va="top")
    axes.text(0.5, -0.05, "support", fontsize=9, ha="center")
    axes.text(WIDE, -0.05, "query: class predicted before → after adaptation, and how sure", fontsize=9)
    axes.set(xlim=(-0.3, right), ylim=(bottom, -0.3))
    axes.set_axis_off()
    return figure


def _image(axes: Axes, image: Tensor, left: float, top: float, colour: str) -> None:
    pixels = image.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, extent=(left, left + 1, top + 1, top))
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, color=colour, linewidth=2))
