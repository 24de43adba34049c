"""The configurations that come along, named without a path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from imaml_lightning.cli.own_options import FIRST_LOOK
from imaml_lightning.cli.wording import nearest
from imaml_lightning.errors import UsageError


def shipped() -> dict[str, Path]:
    """Name, such as ``omniglot_5w1s`` or ``algorithms/maml``, -> file: of the installed package, or beside it in a checkout."""
    package = Path(str(files("imaml_lightning")))
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    found = sorted(folder.rglob("*.yaml")) if folder else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found if folder}


def with_first_look(args: Sequence[str]) -> list[str]:
    """``args`` with the configuration of the first look, if they are a ``fit`` of no configuration, checkpoint, data or model."""
    options = {arg.partition("=")[0].partition(".init_args")[0].rstrip("+") for arg in args if arg.startswith("-")}
    names = {"--config", "-c", "--ckpt_path"}
    own = [o for o in options if o in names or f"{o}.".startswith(("--data.source.", "--model."))]
    return list(args) if own or args[:1] != ["fit"] else ["fit", "--config", FIRST_LOOK, *args[1:]]


def with_paths(args: Sequence[str]) -> list[str]:
    """``args`` with the file of every ``--config`` in place of its name.

    Raises:
        UsageError: there is neither a file nor a configuration of that name.
    """
    known, found, is_value = shipped(), list[str](), False
    for arg in args:
        option, equals, value = arg.partition("=")
        if is_value:
            found.append(_path(arg, known))
        elif option in ("--config", "-c") and equals:
            found.append(f"{option}={_path(value, known)}")
        else:
            found.append(arg)
        is_value = not is_value and arg in ("--config", "-c")
    return found


def _path(value: str, known: dict[str, Path]) -> str:
    if len(value) > 255 or "\n" in value or Path(value).is_file():  # the options themselves may stand there
        return value
    name = value.removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return str(known[name])
    raise UsageError(f"--config {value} does not exist{nearest(name, known) or ': give a file, or see configs/'}")
