"""Contact sheet: one episode's support images, and what became of its query images."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from imaml_lightning.episode import Episode
from imaml_lightning.figures.style import RIGHT, WRONG

SHOWN = 6  # query images of a class, at most


def contact_sheet(episode: Episode, before: Tensor, after: Tensor, task: int = 0) -> Figure:
    """One task of ``episode``: a support image of each class, and query images with the predicted class and its
    probability, right or wrong.

    Args:
        episode: images as floats, one channel or three.
        before, after: logits ``[task, example, output]`` on the query set at θ and at φ.
        task: which task of the episode.
    """
    support, query = episode
    way = int(support.y.max()) + 1
    shown = min(SHOWN, int((query.y[task] == 0).sum()))
    guesses, chances = before[task].argmax(-1), after[task].softmax(-1)
    figure = Figure(figsize=(1.15 * (shown + 1) + 0.6, 1.3 * way), layout="constrained")
    grid = figure.subplots(way, shown + 1, squeeze=False)
    for number, row in enumerate(grid):
        _image(row[0], support.x[task, support.y[task] == number][0])
        row[0].set_ylabel(f"class {number}", fontsize=9)
        mine = (query.y[task] == number).nonzero().flatten()[:shown].tolist()
        for axes in row[1 + len(mine) :]:
            axes.set_axis_off()
        for axes, example in zip(row[1:], mine, strict=False):
            _image(axes, query.x[task, example])
            guess = int(chances[example].argmax())
            colour = RIGHT if guess == number else WRONG
            label = f"{int(guesses[example])} → {guess}   {chances[example, guess]:.0%}"
            axes.set_xlabel(label, fontsize=9, color=colour, labelpad=2)
            for side in axes.spines.values():
                side.set(color=colour, linewidth=2)
    grid[0, 0].set_title("support", fontsize=9)
    note = "query: class predicted before → after adaptation, and how sure"
    title = grid[0, 1].text(0, 1.06, note, fontsize=9, transform=grid[0, 1].transAxes)
    title.set_in_layout(False)  # or its column would be made as wide as it is
    return figure


def _image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
