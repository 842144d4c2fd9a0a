"""``adaftr-fast tune``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, add_engine, place, read_config, training_engine
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
    add_engine(parser, "what trains the trials: local, this process, or ray, a Ray cluster that sees --out")
    parallel = "with --engine ray: how many trials train at the same time, each on one thread (default: 1)"
    parser.add_argument("--parallel", type=int | None, help=parallel)
    add_config(parser)


def run(arguments: jsonargparse.Namespace) -> None:
    """Runs or continues a search, prints its best trials and writes its report."""
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.engines.engine import Local
    from adaftr_fast.runs.output import output
    from adaftr_fast.tuning.report import tune_and_report
    from adaftr_fast.tuning.space import default_space, read_space
    from adaftr_fast.tuning.trial import Search

    if arguments.trials < 1:
        raise ConfigError(f"--trials: expected >= 1, got {arguments.trials}")
    if arguments.parallel is not None and (arguments.engine != "ray" or arguments.parallel < 1):
        raise ConfigError(f"--parallel: expected >= 1, with --engine ray, got {arguments.parallel}")
    config = read_config(arguments)
    space = default_space(config) if arguments.space is None else read_space(arguments.space, config)
    with output(arguments.out) as out:
        search = Search(PreparedData(config.data.folder), config, space, out.local, arguments.task)
        with training_engine(arguments, config.training, Local(), arguments.parallel or 1) as engine:
            print(tune_and_report(search, arguments.trials, engine))
        print(f"\nadaftr-fast train --config {out.recorded(out.local / 'best.toml')} --out RUN")
