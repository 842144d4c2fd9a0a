"""``adaftr-fast prepare``."""

from __future__ import annotations

import warnings
from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser
from adaftr_fast.errors import DataError

DESCRIPTION = "Turn raw logs, parquet or text, into a prepared folder."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``prepare``."""
    parser.add_argument("--dataset", type=str | None, help="one that info lists, or a schema file (.toml)")
    parser.add_argument("--files", type=str, nargs="+", default=[], help="input files; none for flights and synthetic")
    parser.add_argument("--labels", type=str, nargs="+", help="instead of --dataset: the 0/1 columns, one a task")
    parser.add_argument("--group", type=str | None, help="with --labels: the column of users")
    parser.add_argument("--time", type=str | None, help="with --labels: the column to split by, else by users or rows")
    parser.add_argument("--weight", type=str | None, help="with --labels: the column of sample weights")
    parser.add_argument("--ignore", type=str, nargs="+", default=[], help="with --labels: columns to leave out")
    parser.add_argument("--bad_rows", type=float, default=0.0, help="share of rows of text that may be unreadable")
    grow = "a prepared folder of the same fields whose ids keep their meaning; new values get ids after its own"
    parser.add_argument("--grow", type=Path | None, help=grow)
    shard = (
        "K/N: do shard K of N, on any machine that sees the files and --out, as far as the others have come; run every "
        "shard three times, with Ali-CCP's raw files four, and the last one writes --out"
    )
    parser.add_argument("--shard", type=str | None, help=shard)
    parser.add_argument("--part", type=str | None, help="the former name of --shard (deprecated)")
    wait = "with --shard: seconds to wait for the others at each stage, so that one run of each is enough"
    parser.add_argument("--wait", type=float, default=0.0, help=wait)
    parser.add_argument("--out", type=Path, required=True, help="the prepared folder")


def run(arguments: jsonargparse.Namespace) -> None:
    """Prepares, or does one shard, and prints what the folder holds."""
    from adaftr_fast.api.prepare import Unfinished, prepare

    options = arguments.as_dict()
    if (part := options.pop("part")) is not None:
        warnings.warn("prepare --part is deprecated: use --shard", DeprecationWarning, stacklevel=2)
        options["shard"] = part
    prepared = prepare(options.pop("files"), options.pop("out"), **options)
    if not isinstance(prepared, Unfinished):
        print(prepared)
        return
    missing = ", ".join(map(str, prepared.missing))
    state = f"shard {options['shard']}: {prepared.stage} is done, but not by shard {missing}; run this again once it is"
    if arguments.wait:
        raise DataError(f"{state} (waited {arguments.wait:g} seconds)")
    print(state)
