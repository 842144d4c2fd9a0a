"""``adaftr-fast experiment``: its options, and what it does with them.

Like the command line itself, this imports what is slow to import only when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from adaftr_fast.models.config import ModelConfig
from adaftr_fast.training.config import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from adaftr_fast.data.loader import PreparedData
    from adaftr_fast.experiments.jobs import Budget
    from adaftr_fast.experiments.results import Results

NAMES = ("table4", "table5", "table6", "fig3", "fig4", "temperature")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the options of ``experiment`` to a parser that reads TOML."""
    parser.add_argument("name", type=str, choices=NAMES, help="which table or figure of the paper")
    dataset = "a data set's name, a schema file (.toml), or a prepared folder"
    parser.add_argument("--dataset", type=str, required=True, help=dataset)
    parser.add_argument("--files", type=str, nargs="+", default=[], help="input files of a data set that ships none")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder for data, runs and reports")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, from training.seed upwards")
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
    """Runs or resumes an experiment and writes its report.

    Raises:
        ValueError: an option out of range, or data the experiment cannot be made of.
        DataError: data that cannot be read or prepared.
        TrainingError: a training process was killed.
    """
    from adaftr_fast.experiments.jobs import Budget

    if arguments.seeds < 1:
        raise ValueError(f"--seeds: expected >= 1, got {arguments.seeds}")
    budget = Budget(
        ModelConfig(**arguments.model.as_dict()),
        OptimizerConfig(**arguments.optimizer.as_dict()),
        TrainingConfig(**arguments.training.as_dict()),
    )
    data, folder = open_dataset(arguments.dataset, arguments.files, arguments.out, budget.training.progress)
    command = f"adaftr-fast experiment {arguments.name} --dataset {arguments.dataset} --seeds {arguments.seeds}"
    _report(arguments, data, budget, folder, command)


def _report(arguments: jsonargparse.Namespace, data: PreparedData, budget: Budget, folder: Path, command: str) -> None:
    from adaftr_fast.experiments.report import caption, main_table, warnings, write_report

    results = collect(arguments.name, data, budget, arguments.seeds, arguments.jobs, folder / "runs")
    paths = write_report(folder, results, command)
    print(f"\n{results.experiment.title}: {results.dataset}\n{main_table(results)}\n\n{caption(results)}")
    if remarks := warnings(results.rows):
        print(remarks)
    print(f"Report: {', '.join(map(str, paths))}")


def open_dataset(dataset: str, files: list[str], out: Path, progress: bool) -> tuple[PreparedData, Path]:
    """The prepared data and the folder of their experiments; a data set given by name is prepared in that folder.

    Raises:
        DataError: no prepared folder, data set or schema of that name, or input that cannot be prepared.
    """
    from adaftr_fast.data.loader import PreparedData
    from adaftr_fast.data.manifest import MANIFEST
    from adaftr_fast.data.prepare import prepare
    from adaftr_fast.data.schema import load_schema

    if (Path(dataset) / MANIFEST).is_file():
        data = PreparedData(dataset)
        return data, out / data.manifest.dataset
    schema = load_schema(dataset)
    folder = out / schema.name
    prepare(schema, files, folder / "data", progress=progress)
    return PreparedData(folder / "data"), folder


def collect(name: str, data: PreparedData, budget: Budget, seeds: int, workers: int, root: Path) -> Results:
    """Does what is missing of the runs of an experiment, and gathers all of them.

    Args:
        seeds: how many runs of each row, from ``budget.training.seed`` upwards.
        workers: how many at the same time.
        root: the folder of runs.
    """
    from adaftr_fast.experiments.catalog import experiment
    from adaftr_fast.experiments.jobs import plan
    from adaftr_fast.experiments.pool import run_all
    from adaftr_fast.experiments.results import Results, Row

    manifest = data.manifest
    wanted = experiment(name, budget.model, manifest.tasks)
    numbers = range(budget.training.seed, budget.training.seed + seeds)
    jobs = {
        (seed, variant.title): plan(data, variant, budget, seed, root)
        for seed in numbers  # seeds before rows, so that an experiment that is cut short holds whole comparisons
        for variant in wanted.variants
    }
    outcomes = run_all(list(jobs.values()), workers=workers, progress=budget.training.progress)
    rows = [Row(v, {seed: outcomes[jobs[seed, v.title].key] for seed in numbers}) for v in wanted.variants]
    return Results(wanted, manifest.dataset, manifest.attribution, manifest.fingerprint, manifest.tasks, budget, rows)
