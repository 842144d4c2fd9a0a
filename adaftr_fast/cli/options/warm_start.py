"""The options of a warm start."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options.parser import Parser
from adaftr_fast.cli.options.place import place
from adaftr_fast.config import WarmStartConfig
from adaftr_fast.errors import ConfigError


def add_warm_start(parser: Parser, what: str = "a run") -> None:
    """Adds ``--warm_start``, the task of it and whether it may take nothing; ``what`` names the run in the help."""
    run = f"{what} whose weights to copy: embedding rows by field and value, dense layers by name and shape"
    parser.add_argument("--warm_start", type=place, help=run)
    task = "the task of a single_dnn in --warm_start whose tables become the shared ones (default: the first)"
    parser.add_argument("--warm_start_task", type=str | None, help=task)
    empty = "train although no weight of --warm_start fits"
    parser.add_argument("--warm_start_empty", action="store_true", help=empty)


def read_warm_start(arguments: jsonargparse.Namespace) -> WarmStartConfig | None:
    """Returns what ``add_warm_start`` asks for, or None.

    Raises:
        ConfigError: an option is given without ``--warm_start``.
    """
    run = arguments.warm_start
    task = arguments.warm_start_task
    empty = arguments.warm_start_empty
    if run is not None:
        return WarmStartConfig(str(run), task or "", empty)
    for option, value in (("task", task), ("empty", empty)):
        if value:
            raise ConfigError(f"--warm_start_{option}: needs --warm_start, the run to start from")
    return None
