"""``adaftr-fast compare``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options import Parser, place

DESCRIPTION = "Compare runs: metrics, best epochs, speed, and the options in which they differ."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``compare``."""
    parser.add_argument("runs", type=place, nargs="+", help="the --out folders of train")
    parser.add_argument("--out", type=place, help="a folder for report.md and report.png with the curves")


def run(arguments: jsonargparse.Namespace) -> None:
    """Prints the tables, and a line about each run that cannot be read."""
    from adaftr_fast.api.compare import compare

    print(compare(arguments.runs, arguments.out))
