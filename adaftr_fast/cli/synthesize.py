"""``adaftr-fast synthesize``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser
from adaftr_fast.data.synthetic.log import LogConfig

DESCRIPTION = "Generate a synthetic impression log with known true probabilities."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``synthesize``."""
    parser.add_class_arguments(LogConfig)
    parser.add_argument("--raw", type=bool, default=False, help="write text in Ali-CCP's raw format instead of parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for the log and its schema")


def run(arguments: jsonargparse.Namespace) -> None:
    """Writes the log and prints the command that prepares it."""
    from adaftr_fast.data.synthetic.raw import write_raw
    from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log

    settings = arguments.as_dict()
    folder, raw = settings.pop("out"), settings.pop("raw")
    if raw:
        dataset, files = "aliccp", write_raw(LogConfig(**settings), folder, progress=True)
    else:
        write_log(LogConfig(**settings), folder, progress=True)
        dataset, files = folder / SCHEMA, [folder / LOG]
    print(f"adaftr-fast prepare --dataset {dataset} --files {' '.join(map(str, files))} --out PREPARED")
