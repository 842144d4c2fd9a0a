"""``adaftr-fast train``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, read_config
from adaftr_fast.config import WarmStartConfig
from adaftr_fast.errors import ConfigError

DESCRIPTION = "Train one model on a prepared folder."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``train`` to a parser that reads TOML."""
    add_config(parser)
    out = (
        "the run folder, for metrics.jsonl, best/ and test.json; an unfinished run in it resumes, and a finished one "
        "is replaced after the first epoch"
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    restart = "discard an unfinished run in --out"
    parser.add_argument("--restart", action="store_true", help=restart)
    warm = "a run whose weights to copy: embedding rows by field and value, dense layers by name and shape"
    parser.add_argument("--warm_start", type=Path | None, help=warm)
    task = "the task of a single_dnn in --warm_start whose tables become the shared ones (default: the first)"
    parser.add_argument("--warm_start_task", type=str | None, help=task)
    empty = "train although no weight of --warm_start fits"
    parser.add_argument("--warm_start_empty", action="store_true", help=empty)


def run(arguments: jsonargparse.Namespace) -> None:
    """Trains and prints the test metrics; under torchrun only rank 0 prints."""
    from adaftr_fast.api.run import train
    from adaftr_fast.distributed.ranks import is_first

    config, start = read_config(arguments), _warm_start(arguments)
    trained = train(None, arguments.out, config=config, restart=arguments.restart, warm_start=start)
    if is_first():
        print(trained.table())


def _warm_start(arguments: jsonargparse.Namespace) -> WarmStartConfig | None:
    run, task, empty = arguments.warm_start, arguments.warm_start_task, arguments.warm_start_empty
    if run is not None:
        return WarmStartConfig(str(run), task or "", empty)
    for option, value in (("task", task), ("empty", empty)):
        if value:
            raise ConfigError(f"--warm_start_{option}: needs --warm_start, the run to start from")
    return None
