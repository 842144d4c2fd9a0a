"""The command ``experiment``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from adaftr_fast.cli.options import (
    Command,
    Parser,
    add_config,
    add_engine,
    changed_words,
    place,
    read_config,
    training_engine,
)
from adaftr_fast.errors import ConfigError

if TYPE_CHECKING:
    from adaftr_fast.config import RunConfig
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.engines import Engine
    from adaftr_fast.runs.output import Output

NAMES = (
    "table4",
    "table5",
    "table6",
    "recommended",
    "fig3",
    "fig4",
    "temperature",
    "complexity",
    "abtest",
)
SECTIONS = ("model", "optimizer", "training")


def add_experiment(parser: Parser) -> None:
    """Adds the options of ``experiment`` to a parser that reads TOML."""
    name = (
        f"one of {', '.join(NAMES)}; the options below apply to all rows, except those that it "
        "varies"
    )
    parser.add_argument("name", type=str, choices=NAMES, metavar="NAME", help=name)
    dataset = "a data set that info lists, a schema file (.toml), or a prepared folder"
    parser.add_argument("--dataset", type=str, required=True, help=dataset)
    parser.add_argument(
        "--files",
        type=str,
        nargs="+",
        default=[],
        help="input files of a data set that is not included",
    )
    share = (
        "maximum share of rows of --files that cannot be read or lack a label; they alone are "
        "left out"
    )
    parser.add_argument("--bad_rows", type=float, default=0.0, help=share)
    parser.add_argument(
        "--out", type=place, default="runs/experiments", help="folder for data, runs and reports"
    )
    seeds = "number of seeds per row, from training.seed upwards"
    parser.add_argument("--seeds", type=int, default=3, help=seeds)
    jobs = (
        "number of parallel runs, each on one thread; does not change results (default: one per "
        "core, with "
        "--engine ray as many as the cluster can run)"
    )
    parser.add_argument("--jobs", type=int | None, help=jobs)
    add_engine(
        parser,
        "what trains the runs: local, processes of this machine, or ray, a Ray cluster that "
        "sees --out",
    )
    parser.add_argument(
        "--auctions", type=int, default=100_000, help="number of auctions of abtest"
    )
    parser.add_argument(
        "--slate", type=int, default=10, help="number of candidate ads of each auction of abtest"
    )
    add_config(parser, SECTIONS)


def experiment(arguments: jsonargparse.Namespace) -> None:
    """Runs or resumes an experiment, prints its tables and writes its report."""
    from adaftr_fast.runs.output import output
    from adaftr_fast.training.sharding import check_replicated

    for option in (
        ("seeds", "jobs", "auctions") if arguments.name == "abtest" else ("seeds", "jobs")
    ):
        if arguments[option] is not None and arguments[option] < 1:
            raise ConfigError(f"--{option}: expected >= 1, got {arguments[option]}")
    if arguments.name == "complexity" and arguments.engine != "local":
        raise ConfigError(
            "--engine: expected local for complexity, which times this machine, got "
            f"{arguments.engine}"
        )
    config = read_config(arguments, SECTIONS)
    check_replicated("experiment", config.training)
    with output(arguments.out) as out:
        _run(arguments, config, out)


def _run(arguments: jsonargparse.Namespace, config: RunConfig, out: Output) -> None:
    from adaftr_fast._locks import writing_folder
    from adaftr_fast.engines import Processes, cores
    from adaftr_fast.experiments.study import open_dataset

    data, folder = open_dataset(
        arguments.dataset, arguments.files, out, config.training.progress, arguments.bad_rows
    )
    if (bad_rows := data.manifest.bad_rows) and bad_rows.bad:
        print(f"Left out: {bad_rows.summary()}")
    command = _command(arguments, config)
    reports = (f"{arguments.name}.{kind}" for kind in ("md", "json", "png"))
    local = Processes(arguments.jobs or cores())
    with (
        training_engine(arguments, config.training, local, arguments.jobs) as engine,
        writing_folder(folder, *reports),
    ):
        text, paths = _report(arguments, data, config, folder, command, engine)
    print(f"\n{text}\n\nReport: {', '.join(map(out.recorded, paths))}")


def _command(arguments: jsonargparse.Namespace, config: RunConfig) -> str:
    """Returns the command that makes the same tables, with the options of a ``--config`` file as
    options.
    """
    words = ["adaftr-fast", "experiment", arguments.name, "--dataset", arguments.dataset]
    words += ["--files", *arguments.files] if arguments.files else []
    words += ["--bad_rows", str(arguments.bad_rows)] if arguments.bad_rows else []
    words += ["--seeds", str(arguments.seeds)]
    if arguments.name == "abtest":
        words += ["--auctions", str(arguments.auctions), "--slate", str(arguments.slate)]
    return shlex.join([*words, *changed_words(config, SECTIONS), "--out", arguments.out])


def _report(
    arguments: jsonargparse.Namespace,
    data: PreparedData,
    config: RunConfig,
    folder: Path,
    command: str,
    engine: Engine,
) -> tuple[str, list[Path]]:
    """Runs the experiment, and returns the text to print and the files of its report."""
    if arguments.name == "complexity":
        from adaftr_fast.experiments.complexity import (
            cost_summary,
            measure,
            write_complexity_report,
        )

        costs = measure(data, config)
        return cost_summary(costs), write_complexity_report(folder, costs, command)
    if arguments.name == "temperature":
        from adaftr_fast.experiments.study import temperatures
        from adaftr_fast.experiments.temperature import temperature_tables, write_temperature_report

        pairs = temperatures(data, config, seeds=arguments.seeds, engine=engine, folder=folder)
        text = "\n\n".join(map(temperature_tables, pairs))
        return text, write_temperature_report(folder, data.manifest.dataset, pairs, command)
    if arguments.name == "abtest":
        from adaftr_fast.experiments import abtest

        size = abtest.Size(arguments.auctions, arguments.slate)
        found = abtest.run_abtest(
            data, config, size, seeds=arguments.seeds, engine=engine, folder=folder
        )
        return abtest.summary(found), abtest.write_abtest_report(folder, found, command)
    from adaftr_fast.experiments.report import summary, write_report
    from adaftr_fast.experiments.study import compare

    results = compare(
        arguments.name, data, config, seeds=arguments.seeds, engine=engine, folder=folder
    )
    return summary(results), write_report(folder, results, command)


COMMANDS = {
    "experiment": Command(
        "Run or resume the experiment of a table or figure, and write its report.",
        add_experiment,
        experiment,
    ),
}
