"""``adaftr-fast demo``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options import Parser, place
from adaftr_fast.config import TrainingConfig

DESCRIPTION = "Train MMoE and AdaFTR on the included flights data set and compare them."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``demo``."""
    out = "folder for the prepared data, both runs and the report"
    parser.add_argument("--out", type=place, required=True, help=out)
    parser.add_argument("--restart", action="store_true", help="discard unfinished runs in --out")
    parser.add_section(TrainingConfig(), "training.")


def run(arguments: jsonargparse.Namespace) -> None:
    """Runs the demo."""
    from adaftr_fast.distributed.ranks import joined
    from adaftr_fast.runs.demo import run_demo
    from adaftr_fast.runs.output import output

    training = TrainingConfig(**arguments.training.as_dict())
    with joined(training.device, training.rank_timeout) as ranks, output(arguments.out, ranks) as out:
        run_demo(out.local, training, restart=arguments.restart, ranks=ranks, output=out)
