"""``adaftr-fast daily``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, add_engine, add_warm_start, place, read_config, read_warm_start

DESCRIPTION = "Train day by day, and evaluate each day before training on it."
SECTIONS = ("model", "optimizer", "training")


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``daily`` to a parser that reads TOML."""
    files = "one file per day in order, including the finished days"
    parser.add_argument(
        "--dataset",
        type=str,
        required=True,
        help="a data set or schema file (.toml) of one input file; its split is ignored",
    )
    parser.add_argument("--files", type=place, nargs="+", required=True, help=files)
    parser.add_argument("--out", type=place, required=True, help="folder for daily.jsonl and one folder per day")
    add_warm_start(parser, "for the first day, a run")
    add_engine(parser, "what prepares a day: local, this process, or ray, a Ray cluster that sees --files and --out")
    add_config(parser, SECTIONS)


def run(arguments: jsonargparse.Namespace) -> None:
    """Trains day by day; rank 0 prints the metrics of each day before and after training on it."""
    from adaftr_fast.data.schema.parse import load_schema
    from adaftr_fast.distributed.ranks import is_first, joined
    from adaftr_fast.engines import open_engine
    from adaftr_fast.runs.daily import train_daily
    from adaftr_fast.runs.output import output
    from adaftr_fast.stores import as_path

    config = replace(read_config(arguments, SECTIONS), warm_start=read_warm_start(arguments))
    schema = load_schema(arguments.dataset)
    files = [as_path(file) for file in arguments.files]
    training = config.training
    with (
        joined(training.device, training.rank_timeout) as ranks,
        output(arguments.out, ranks) as out,
        open_engine(arguments.engine, arguments.address) if is_first() else nullcontext() as engine,
    ):
        for record in train_daily(schema, files, config, out.local, ranks, engine, out):
            if is_first():
                print(_line(record))


def _line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.result import aucs

    measured = record["before_training"]
    text = "the first day" if measured is None else aucs(measured)
    return (
        f"day {record['day']} ({record['file']}): {record['rows']:,} rows, {record['ids']:,} ids; "
        f"before training: {text}; validation after training: {aucs(record['validation'])}"
    )
