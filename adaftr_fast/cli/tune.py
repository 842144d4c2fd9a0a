"""``adaftr-fast tune``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, place, read_config
from adaftr_fast.errors import ConfigError

DESCRIPTION = "Search for the options with the best validation AUC."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``tune`` to a parser that reads TOML."""
    out = "the folder, for study.db, best.toml, report.md and a run per trial; the same command continues the search"
    parser.add_argument("--out", type=place, required=True, help=out)
    trials = "number of trials, including those of earlier calls"
    parser.add_argument("--trials", type=int, default=50, help=trials)
    space = "a TOML file of the options that vary, with their values (docs/tuning.md); default: lr, l2 and the sizes"
    parser.add_argument("--space", type=Path | None, help=space)
    task = "the task whose AUC counts (default: the mean over tasks)"
    parser.add_argument("--task", type=str | None, help=task)
    add_config(parser)


def run(arguments: jsonargparse.Namespace) -> None:
    """Runs or continues a search, prints its best trials and writes its report."""
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.runs.output import output
    from adaftr_fast.stores import recorded
    from adaftr_fast.tuning.report import tune_and_report
    from adaftr_fast.tuning.search import Search
    from adaftr_fast.tuning.space import default_space, read_space

    if arguments.trials < 1:
        raise ConfigError(f"--trials: expected >= 1, got {arguments.trials}")
    config = read_config(arguments)
    space = default_space(config) if arguments.space is None else read_space(arguments.space, config)
    with output(arguments.out) as folder:
        search = Search(PreparedData(config.data.folder), config, space, folder, arguments.task)
        print(tune_and_report(search, arguments.trials))
        print(f"\nadaftr-fast train --config {recorded(folder / 'best.toml')} --out RUN")
