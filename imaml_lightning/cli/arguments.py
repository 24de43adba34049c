"""A command line before it is parsed: the order of its words, and whose classes it may name."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import set_parsing_settings

from imaml_lightning.learner.checkpoint import TRUSTED


def import_only(trust: str | None) -> None:
    """Let options and configurations name classes of ``TRUSTED`` and of the packages that ``--trust`` names, and no others."""
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *packages(trust)],
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,  # Lightning's choice would let --config fetch an address
    )


def packages(trust: str | None) -> list[str]:
    """The names in ``--trust a,b``."""
    return [name.strip() for name in (trust or "").split(",") if name.strip()]


def class_first(args: Sequence[str]) -> list[str]:
    """``args`` with every class before options of it, which the parser would give to the class that was there before:

    ``--data.source.path X --data.source TaskTable`` becomes ``--data.source TaskTable --data.source.path X``.
    """
    options = _options(args)
    for place in range(len(options)):
        name = _name(options[place])
        earlier = [_name(option) for option in options[:place]]
        if name and name not in earlier:
            nested = [number for number, other in enumerate(earlier) if other.startswith(f"{name}.")]
            if nested:
                options.insert(nested[0], options.pop(place))
    return [word for option in options for word in option]


def _options(args: Sequence[str]) -> list[list[str]]:
    """Words, each option with its value together."""
    options: list[list[str]] = []
    for arg in args:
        takes_value = (
            options and options[-1][0].startswith("--") and len(options[-1]) == 1 and "=" not in options[-1][0]
        )
        if takes_value and not arg.startswith("--"):
            options[-1].append(arg)
        else:
            options.append([arg])
    return options


def _name(option: list[str]) -> str:
    """``model.network`` of ``--model.network Conv4``; nothing for a word that is no option."""
    if not option[0].startswith("--"):
        return ""
    return option[0][2:].partition("=")[0].replace(".init_args", "").removesuffix(".class_path")
