"""Pictures are read in the size in which a pretrained body takes them, unless somebody asks for another."""

from __future__ import annotations

from jsonargparse import Namespace

from imaml_lightning.models.bodies import own_pixels


def read_in_own_size(options: Namespace, given: set[str]) -> None:
    """Set ``data.source.size`` of a source that has one to what the network's body takes.

    Args:
        options: of a subcommand; changed in place.
        given: names of the options that the person set; these stay.
    """
    network, source = (options.model.get("network"), options.data.get("source"))
    arguments = network.get("init_args") if network else None
    if not arguments or not source or "data.source.size" in given or "size" not in source.get("init_args", Namespace()):
        return
    if network.class_path != "imaml_lightning.models.Backbone" or not source.class_path.endswith(".ImageFolder"):
        return
    pixels = arguments.pixels or (own_pixels(arguments.name) if arguments.name else None)
    if pixels:
        source.init_args.size = pixels
