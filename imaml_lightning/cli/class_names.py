"""What the name of a class means on the command line and in YAML."""

from __future__ import annotations

from jsonargparse import _typehints

from imaml_lightning.learner.checkpoint import class_today

_resolve = _typehints.resolve_class_path_by_name


def find_our_classes() -> None:
    """Let a bare name mean our class, and a path of an older version of this package the class of its name today.

    jsonargparse takes bare names alone as well, but refuses those that torchvision's networks also have: MLP, DenseNet.
    """
    _typehints.resolve_class_path_by_name = _resolve_ours


def _resolve_ours(cls: type | tuple[type], name: str) -> str:
    try:
        return _resolve(cls, class_today(name))
    except ValueError:  # several have this name
        if isinstance(cls, tuple):  # was asked for one by one
            raise
        paths = _typehints.get_all_subclass_paths(cls)
        ours = [path for path in paths if path.startswith("imaml_lightning.") and path.rpartition(".")[2] == name]
        if len(ours) != 1:
            raise
        return ours[0]
