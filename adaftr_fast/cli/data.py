"""The commands ``prepare``, ``synthesize`` and ``info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse

from adaftr_fast.cli.options import Command, Parser, add_engine, add_memory, no_options, place
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.errors import DataError

INFERRED = (
    "The fields are inferred: --ignore, --multi, --dense, --hash and --min_count change how they "
    "are read."
)
ASK_FOR_SCHEMA = (
    "For any other change, add --write_schema FILE.toml, edit the file, and prepare with --dataset "
    "FILE.toml."
)


EXAMPLE = """\
adaftr-fast prepare --files log.csv --labels click conversion --group user --time timestamp --out data/mine
adaftr-fast train --data data/mine --out runs/mine"""


def add_prepare(parser: Parser) -> None:
    """Adds the options of ``prepare``."""
    parser.example = EXAMPLE
    parser.start_group("what to read and where to write")
    files = (
        "files of parquet or text, and folders of them, as one log; not used for flights and "
        "synthetic"
    )
    parser.add_argument("--files", type=str, nargs="+", default=[], help=files)
    parser.add_argument("--out", type=place, required=True, help="the prepared folder")
    parser.add_argument(
        "--labels", type=str, nargs="+", help="one 0/1 column per task; the fields are inferred"
    )
    dataset = "instead of --labels: a data set that info lists, or a schema file (.toml)"
    parser.add_argument("--dataset", type=str | None, help=dataset)
    _add_roles(parser)
    _add_fields(parser)
    _add_text(parser)
    parser.start_group("how to work")
    parser.add_argument(
        "--bad_rows", type=float, default=0.0, help="maximum share of rows that cannot be read"
    )
    grow = "a prepared folder of the same fields whose ids are kept; new values get new ids"
    parser.add_argument("--grow", type=place, help=grow)
    add_engine(parser, "what runs the steps: local, this process, or ray, a Ray cluster")
    shards = (
        "into how many shards the rows are divided (default: 1, with --engine ray one for each 512 "
        "MB of the files)"
    )
    parser.add_argument("--shards", type=int | None, help=shards)
    add_memory(parser, "each process may take, beside the distinct values of the fields")


def _add_roles(parser: Parser) -> None:
    parser.start_group("the roles of columns, with --labels")
    parser.add_argument("--group", type=str | None, help="the column of users")
    parser.add_argument(
        "--time", type=str | None, help="the column to split by, else users or rows"
    )
    parser.add_argument("--weight", type=str | None, help="the column of sample weights")
    parser.add_argument("--ignore", type=str, nargs="+", default=[], help="columns to leave out")
    funnel = (
        "tasks in order, each of which happens only after the one before, for the CVR AUC of each "
        "later one and for "
        "predict --bid; none for independent tasks (default: click conversion, if both are labels)"
    )
    parser.add_argument("--funnel", type=str, nargs="*", help=funnel)


def _add_fields(parser: Parser) -> None:
    parser.start_group("how fields are read, with --labels")
    multi = (
        "text columns that hold lists, as NAME=SEPARATOR, such as 'tags=|'; NAME= reads one value. "
        "Others are "
        "detected, with a warning"
    )
    parser.add_argument("--multi", type=str, nargs="+", default=[], help=multi)
    parser.add_argument(
        "--dense", type=str, nargs="+", default=[], help="numbers that are not embedded"
    )
    hashed = "columns whose values get their ids by a hash, as NAME=IDS, such as item=1000000"
    parser.add_argument("--hash", type=str, nargs="+", default=[], help=hashed)
    rare = "how many training rows a value needs to get an id (default: 1)"
    parser.add_argument("--min_count", type=int | None, help=rare)
    written = (
        "also write the inferred schema to this file (.toml), to edit it and pass it as --dataset"
    )
    parser.add_argument("--write_schema", type=Path | None, help=written)


def _add_text(parser: Parser) -> None:
    parser.start_group("how text is read, with --labels")
    null = "words that mean missing, such as NA (default: those in columns of numbers)"
    parser.add_argument("--null", type=str, nargs="+", default=[], help=null)
    thousands = "the mark of thousands, such as ',' (default: detected)"
    parser.add_argument("--thousands", type=str, default="", help=thousands)
    decimal = "the mark of decimals (default: ., or a comma if detected)"
    parser.add_argument("--decimal", type=str, default=".", help=decimal)
    dates = "forms of --time, such as %%d/%%m/%%Y (default: detected)"
    parser.add_argument("--dates", type=str, nargs="+", default=[], help=dates)


def prepare(arguments: jsonargparse.Namespace) -> None:
    """Prepares a folder and prints a summary."""
    from adaftr_fast.api.data_report import PAGE
    from adaftr_fast.api.prepare import prepare

    options = arguments.as_dict()
    options["multi"] = _pairs("multi", "SEPARATOR", options["multi"])
    options["hash"] = {
        name: _ids(name, ids) for name, ids in _pairs("hash", "IDS", options["hash"]).items()
    }
    prepared = prepare(options.pop("files"), options.pop("out"), **options)
    print(prepared)
    print(f"Values, label rates and drift of each field: {prepared.folder / PAGE}")
    if arguments.labels:
        written = arguments.write_schema
        print(INFERRED)
        print(
            ASK_FOR_SCHEMA
            if written is None
            else f"Edit {written}, and prepare with --dataset {written}."
        )
    print(f"adaftr-fast train --data {arguments.out} --out RUN")


def _pairs(option: str, what: str, pairs: list[str]) -> dict[str, str]:
    """Returns the values of an option by column."""
    values = {}
    for pair in pairs:
        name, equals, values[name] = pair.partition("=")
        if not equals:
            raise DataError(f"--{option}: expected NAME={what}, got {pair!r}")
    return values


def _ids(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"--hash: expected NAME=IDS with a number of ids, got '{name}={text}'"
        ) from None


def add_synthesize(parser: Parser) -> None:
    """Adds the options of ``synthesize``."""
    parser.add_section(LogConfig(rows=1), required=["rows"])
    parser.add_argument(
        "--raw",
        type=bool,
        default=False,
        help="write text in Ali-CCP's raw format instead of parquet",
    )
    parser.add_argument(
        "--out", type=place, required=True, help="folder for the log and its schema"
    )


def synthesize(arguments: jsonargparse.Namespace) -> None:
    """Writes the log and prints the command that prepares it."""
    from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log, write_raw
    from adaftr_fast.runs.output import output

    settings = arguments.as_dict()
    place = settings.pop("out")
    raw = settings.pop("raw")
    with output(place) as out:
        if raw:
            dataset = "aliccp"
            files = write_raw(LogConfig(**settings), out.local, progress=True)
        else:
            write_log(LogConfig(**settings), out.local, progress=True)
            dataset = out.recorded(out.local / SCHEMA)
            files = [out.local / LOG]
        paths = " ".join(map(out.recorded, files))
    print(f"adaftr-fast prepare --dataset {dataset} --files {paths} --out PREPARED")


def info(arguments: jsonargparse.Namespace) -> None:
    """Prints one line per fact."""
    from adaftr_fast._extension import build_info
    from adaftr_fast.data.schema.parse import shipped_schemas

    info: dict[str, Any] = build_info() | {"data sets": ", ".join(shipped_schemas())}
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {value}")


COMMANDS = {
    "prepare": Command(
        "Convert raw logs, parquet or text, to a prepared folder.", add_prepare, prepare
    ),
    "synthesize": Command(
        "Generate a synthetic impression log with known true probabilities.",
        add_synthesize,
        synthesize,
    ),
    "info": Command(
        "Show the build, the instruction sets in use and the available data sets.", no_options, info
    ),
}
