"""``data check``: its command line; what it does stands in ``data/check.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from imaml_lightning.cli.arguments import class_first, import_only
from imaml_lightning.cli.complaint import OneSentence, refusal
from imaml_lightning.cli.config import peek_options, read_options
from imaml_lightning.cli.configs import with_paths
from imaml_lightning.data import EpisodeDataModule
from imaml_lightning.data.check import check
from imaml_lightning.errors import UsageError


def main(args: Sequence[str]) -> None:
    """``--config FILE`` and options of ``--data``, as for ``fit``; prints :func:`check`.

    Raises:
        UsageError: an option, or the configuration, cannot be used.
    """
    given = with_paths(class_first(args))
    import_only(peek_options(given).get("trust"))
    parser = OneSentence(prog="imaml-lightning data check", description="Look at data before training on them.")
    parser.add_argument("--config", help="A configuration of fit, of which the data part is used.")
    parser.add_argument("--trust", help="Packages, joined by commas, whose classes may be named.")
    parser.add_argument("--traceback", action="store_true", help="Show where an error comes from.")
    parser.add_class_arguments(EpisodeDataModule, "data")
    configs = parser.parse_args([*given]).config
    if configs:
        data = read_options(Path(configs)).get("data")
        if not isinstance(data, dict):
            raise UsageError(f"{configs} is no configuration with a data part: write one as configs/ has")
        given = [f"--data={json.dumps(data)}", *given]
    try:
        data = parser.instantiate(parser.parse_args(given)).data
    except Exception as error:
        raise refusal(error) or error from error
    check(data)
