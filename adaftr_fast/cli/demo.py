"""``adaftr-fast demo``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser
from adaftr_fast.config import TrainingConfig

DESCRIPTION = "Train MMoE and AdaFTR on the included flights data set and compare them."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``demo``."""
    out = "folder for the prepared data, both runs and the report"
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--restart", action="store_true", help="discard unfinished runs in --out")
    parser.add_argument("--training", type=TrainingConfig, default=TrainingConfig())


def run(arguments: jsonargparse.Namespace) -> None:
    """Runs the demo."""
    from adaftr_fast.runs.demo import run_demo

    run_demo(arguments.out, TrainingConfig(**arguments.training.as_dict()), restart=arguments.restart)
