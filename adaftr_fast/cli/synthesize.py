"""``adaftr-fast synthesize``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options import Parser, place
from adaftr_fast.data.synthetic.log import LogConfig

DESCRIPTION = "Generate a synthetic impression log with known true probabilities."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``synthesize``."""
    parser.add_section(LogConfig(rows=1), required=["rows"])
    parser.add_argument("--raw", type=bool, default=False, help="write text in Ali-CCP's raw format instead of parquet")
    parser.add_argument("--out", type=place, required=True, help="folder for the log and its schema")


def run(arguments: jsonargparse.Namespace) -> None:
    """Writes the log and prints the command that prepares it."""
    from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log, write_raw
    from adaftr_fast.runs.output import output

    settings = arguments.as_dict()
    place = settings.pop("out")
    raw = settings.pop("raw")
    with output(place) as out:
        if raw:
            dataset, files = "aliccp", write_raw(LogConfig(**settings), out.local, progress=True)
        else:
            write_log(LogConfig(**settings), out.local, progress=True)
            dataset, files = out.recorded(out.local / SCHEMA), [out.local / LOG]
        paths = " ".join(map(out.recorded, files))
    print(f"adaftr-fast prepare --dataset {dataset} --files {paths} --out PREPARED")
