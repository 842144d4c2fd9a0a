"""``adaftr-fast evaluate``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.cli.options import Parser, add_class, place, read_class

DESCRIPTION = "Evaluate a trained model on one split."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``evaluate``."""
    parser.add_argument("--run", type=place, required=True, help="the --out folder of train")
    parser.add_argument("--data", type=place, help="a prepared folder, if not the one the run was trained on")
    parser.add_argument("--split", type=str, default="test", help="the split: train, validation or test")
    add_class(parser)


def run(arguments: jsonargparse.Namespace) -> None:
    """Prints the metrics as JSON."""
    from adaftr_fast.api.run import evaluate

    found = evaluate(arguments.run, arguments.data, arguments.split, model_class=read_class(arguments))
    print(dumps({"split": found.split, "metrics": found.metrics}, indent=2))
