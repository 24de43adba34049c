"""What a configuration leaves open follows from the data."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from imaml_lightning.data import (
    ClassTable,
    ClassTensors,
    EpisodeDataModule,
    EpisodeSource,
    ImageFolder,
    Tasks,
    TaskTable,
)
from imaml_lightning.inner import InnerSolver

_OURS = "imaml_lightning.models."
_OWN = (ImageFolder, ClassTable, TaskTable, ClassTensors, Tasks)  # sources of a person's own data
_LINE_SEARCH = "imaml_lightning.inner.BacktrackingGradientDescent"


def fill_in(options: Namespace, given: set[str], data: EpisodeDataModule) -> bool:
    """Set the network and its sizes, the number of ways, the inner solver and the figure to choose a checkpoint by, where
    nobody did.

    Args:
        options: of a subcommand; changed in place.
        given: names of the options that the person set; these stay.
        data: set up.

    Returns:
        Whether an option of the learner has changed.
    """
    example = data.episode("train", 0)
    inputs = tuple(example.support.x.shape[2:])
    values = example.support.y.is_floating_point()
    options.data.way = data.training.way
    _choose_figure(options.best, given, values)
    outputs = example.support.y.shape[-1] if values else data.training.way
    sized = _size_network(options.model, given, inputs, outputs)
    return _choose_solver(options.model.adaptation, given, data.source) or sized


def _choose_figure(best: Namespace, given: set[str], values: bool) -> None:
    if "best.monitor" not in given or best.monitor is None:
        best.monitor = "val/loss" if values else "val/accuracy"
    if "best.mode" not in given or best.mode is None:
        best.mode = "max" if best.monitor.endswith("accuracy") else "min"


def _choose_solver(adaptation: Namespace, given: set[str], source: EpisodeSource) -> bool:
    """On a person's own data a line search finds the inner rate, which is known for the package's data alone."""
    own = isinstance(source, _OWN) or not type(source).__module__.startswith("imaml_lightning.")
    if not own or any(name.startswith("model.adaptation") for name in given):
        return False
    steps = adaptation.init_args.inner_solver.init_args.max_steps
    search = {"class_path": _LINE_SEARCH, "init_args": {"max_steps": steps}}
    adaptation.init_args.inner_solver = _with_defaults(search, InnerSolver)
    return True


def _size_network(model: Namespace, given: set[str], inputs: tuple[int, ...], outputs: int) -> bool:
    chosen = any(name == "model.network" or name.startswith("model.network.") for name in given)
    if not chosen and len(inputs) == 1:
        sizes = {"features": inputs[0], "outputs": outputs}
        model.network = _with_defaults({"class_path": f"{_OURS}MLP", "init_args": sizes}, nn.Module)
        return True
    arguments = model.network.get("init_args", Namespace())
    changed = False
    for name, value in _sizes(model.network.class_path, inputs, outputs).items():
        if name in arguments and f"model.network.{name}" not in given and arguments[name] != value:
            arguments[name], changed = value, True
    return changed


def _with_defaults(chosen: dict[str, Any], kind: type) -> Namespace:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "chosen")
    return parser.parse_object({"chosen": chosen}).chosen


def _sizes(network: str, inputs: tuple[int, ...], outputs: int) -> dict[str, int]:
    """What the data say of a network's arguments; of one that is not ours only ``way``, since other names may mean
    other things there."""
    if not network.startswith(_OURS):
        return {"way": outputs}
    sizes = {"way": outputs, "outputs": outputs}
    if len(inputs) == 3:
        sizes |= {"channels": inputs[0]} | ({"size": inputs[1]} if inputs[1] == inputs[2] else {})
    elif len(inputs) == 1:
        sizes |= {"features": inputs[0]}
    return sizes
