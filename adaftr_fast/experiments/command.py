"""``adaftr-fast experiment``: its options, and what it does with them.

Like the command line itself, this imports what is slow to import only when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.training import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.experiments.jobs import Budget

NAMES = ("table4", "table5", "table6", "fig3", "fig4", "temperature", "complexity")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the options of ``experiment`` to a parser that reads TOML."""
    parser.add_argument("name", type=str, choices=NAMES, help="which table or figure of the paper")
    dataset = "a data set's name, a schema file (.toml), or a prepared folder"
    parser.add_argument("--dataset", type=str, required=True, help=dataset)
    parser.add_argument("--files", type=str, nargs="+", default=[], help="input files of a data set that ships none")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder for data, runs and reports")
    seeds = "runs of each row, from training.seed upwards; complexity trains none"
    parser.add_argument("--seeds", type=int, default=3, help=seeds)
    jobs = "runs trained at the same time, each on one thread; their number changes no result (default: one a core)"
    parser.add_argument("--jobs", type=int, default=available_cores(), help=jobs)
    parser.add_argument("--config", action="config", help="a TOML file; options given after it win")
    for name, section in {"model": ModelConfig, "optimizer": OptimizerConfig, "training": TrainingConfig}.items():
        about = "common to all rows, save for what the experiment varies"
        parser.add_argument(f"--{name}", type=section, default=section(), help=about)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_experiment(arguments: jsonargparse.Namespace) -> None:
    """Runs or resumes an experiment, prints its tables and writes its report.

    Raises:
        ValueError: an option out of range, or data the experiment cannot be made of.
        DataError: data that cannot be read or prepared.
        TrainingError: a training process was killed, or tables that lie across ranks.
        CheckpointError: a run's weights are absent or damaged.
    """
    from adaftr_fast.experiments.jobs import Budget
    from adaftr_fast.experiments.study import open_dataset
    from adaftr_fast.training.sharding import check_replicated

    for option in ("seeds", "jobs"):
        if arguments[option] < 1:
            raise ValueError(f"--{option}: expected >= 1, got {arguments[option]}")
    budget = Budget(
        ModelConfig(**arguments.model.as_dict()),
        OptimizerConfig(**arguments.optimizer.as_dict()),
        TrainingConfig(**arguments.training.as_dict()),
    )
    check_replicated("experiment", budget.training)
    data, folder = open_dataset(arguments.dataset, arguments.files, arguments.out, budget.training.progress)
    command = f"adaftr-fast experiment {arguments.name} --dataset {arguments.dataset} --seeds {arguments.seeds}"
    run = {"complexity": _complexity, "temperature": _temperature}.get(arguments.name, _comparison)
    text, paths = run(arguments, data, budget, folder, command)
    print(f"\n{text}\n\nReport: {', '.join(map(str, paths))}")


def _comparison(
    arguments: jsonargparse.Namespace, data: PreparedData, budget: Budget, folder: Path, command: str
) -> tuple[str, list[Path]]:
    """What to print, and the report's files."""
    from adaftr_fast.experiments.report import summary, write_report
    from adaftr_fast.experiments.study import compare

    seeds, workers = arguments.seeds, arguments.jobs
    results = compare(arguments.name, data, budget, seeds=seeds, workers=workers, folder=folder)
    return summary(results), write_report(folder, results, command)


def _temperature(
    arguments: jsonargparse.Namespace, data: PreparedData, budget: Budget, folder: Path, command: str
) -> tuple[str, list[Path]]:
    from adaftr_fast.experiments.study import temperatures
    from adaftr_fast.experiments.temperature_report import temperature_tables, write_temperature_report

    found = temperatures(data, budget, seeds=arguments.seeds, workers=arguments.jobs, folder=folder)
    paths = write_temperature_report(folder, data.manifest.dataset, found, command)
    return "\n\n".join(map(temperature_tables, found)), paths


def _complexity(
    arguments: jsonargparse.Namespace, data: PreparedData, budget: Budget, folder: Path, command: str
) -> tuple[str, list[Path]]:
    from adaftr_fast.experiments.complexity import measure
    from adaftr_fast.experiments.complexity_report import cost_summary, write_complexity_report

    found = measure(data, budget)
    return cost_summary(found), write_complexity_report(folder, found, command)
