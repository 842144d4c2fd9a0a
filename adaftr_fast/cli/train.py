"""``adaftr-fast train``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, add_warm_start, place, read_config, read_warm_start

DESCRIPTION = "Train one model on a prepared folder."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``train`` to a parser that reads TOML."""
    add_config(parser)
    out = (
        "the run folder, for metrics.jsonl, best/ and test.json; an unfinished run in it resumes, and a finished one "
        "is replaced after the first epoch"
    )
    parser.add_argument("--out", type=place, required=True, help=out)
    restart = "discard an unfinished run in --out"
    parser.add_argument("--restart", action="store_true", help=restart)
    add_warm_start(parser)


def run(arguments: jsonargparse.Namespace) -> None:
    """Trains and prints the test metrics; under torchrun only rank 0 prints."""
    from adaftr_fast.api.run import train
    from adaftr_fast.distributed.ranks import is_first

    config = read_config(arguments)
    start = read_warm_start(arguments)
    trained = train(None, arguments.out, config=config, restart=arguments.restart, warm_start=start)
    if is_first():
        print(trained.table())
