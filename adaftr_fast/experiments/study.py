"""Runs experiments: plans the jobs, runs the unfinished ones and collects the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import MANIFEST
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.engines import Engine
from adaftr_fast.errors import DataError, TrainingError
from adaftr_fast.experiments.catalog import Experiment, Variant, experiment
from adaftr_fast.experiments.jobs import Job, Outcome, plan, run_all
from adaftr_fast.experiments.results import Results, Row
from adaftr_fast.experiments.temperature import Temperature, analyse
from adaftr_fast.runs.output import Output
from adaftr_fast.stores import as_path, open_folder
from adaftr_fast.training.bayes import bayes_metrics

Planned = tuple[int, Variant, Job]
"""A seed, a row and their job."""


def open_dataset(
    dataset: str, files: list[str], out: Output, progress: bool, bad_rows: float = 0.0
) -> tuple[PreparedData, Path]:
    """Opens prepared data, or prepares a data set.

    Args:
        dataset: a prepared folder, a data set or a schema file.
        files: input files of the data set.
        out: the output of all experiments.
        progress: shows progress bars.
        bad_rows: the share of rows of the input files that may be unreadable or lack a label.

    Returns:
        The data and the folder of their experiments.

    Raises:
        DataError: there is no such prepared folder, data set or schema, the input cannot be
            prepared, or ``bad_rows`` is given for a prepared folder.
    """
    if ((opened := open_folder(as_path(dataset))) / MANIFEST).is_file():
        if bad_rows:
            raise DataError(
                f"bad_rows: expected files to prepare, got the prepared folder {dataset}"
            )
        data = PreparedData(opened)
        return data, out.local / data.manifest.dataset
    schema = load_schema(dataset)
    folder = out.local / schema.name
    prepare(schema, files, folder / "data", bad_rows=bad_rows, progress=progress)
    return PreparedData(folder / "data", out.recorded(folder / "data")), folder


def plan_all(
    wanted: Experiment, data: PreparedData, config: RunConfig, seeds: int, folder: Path
) -> Iterator[Planned]:
    """Yields seed, row and job for all runs of an experiment; run folders are in ``folder/runs``.

    All rows of a seed come before the next seed, so an interrupted experiment contains complete
    comparisons.
    """
    first = config.training.seed
    for seed, variant in product(range(first, first + seeds), wanted.variants):
        yield seed, variant, plan(data, variant, config, seed, folder / "runs")


def run_rows(
    name: str, data: PreparedData, config: RunConfig, *, seeds: int, engine: Engine, folder: Path
) -> tuple[Experiment, list[Planned], dict[str, Outcome]]:
    """Runs the jobs of an experiment; returns it, the jobs with their seeds and rows, and the
    outcomes by key.

    The arguments and errors are those of ``compare``.
    """
    wanted = experiment(name, config.model, data.manifest.tasks)
    jobs = list(plan_all(wanted, data, config, seeds, folder))
    return (
        wanted,
        jobs,
        run_all([job for *_, job in jobs], engine=engine, progress=config.training.progress),
    )


def check_none_diverged(
    wanted: Experiment, jobs: Sequence[Planned], outcomes: Mapping[str, Outcome]
) -> None:
    """Raises TrainingError if a run diverged."""
    for seed, _, job in jobs:
        if error := outcomes[job.key].error:
            raise TrainingError(f"{wanted.name}: seed {seed} diverged: {error}")


def compare(
    name: str, data: PreparedData, config: RunConfig, *, seeds: int, engine: Engine, folder: Path
) -> Results:
    """Runs an experiment that compares rows.

    Args:
        name: the name of the experiment.
        data: the prepared data.
        config: the configuration that all rows have in common.
        seeds: the number of seeds per row, from ``config.training.seed`` upwards.
        engine: the engine that runs the jobs.
        folder: contains ``runs/``, which experiments on the same data share.

    Raises:
        ConfigError: the experiment is unknown or needs more tasks.
        EngineError: a training process was killed, or the cluster fails.
    """
    manifest = data.manifest
    wanted, jobs, outcomes = run_rows(name, data, config, seeds=seeds, engine=engine, folder=folder)
    rows = [
        Row(variant, {seed: outcomes[job.key] for seed, each, job in jobs if each is variant})
        for variant in wanted.variants
    ]
    return Results(
        experiment=wanted,
        dataset=manifest.dataset,
        attribution=manifest.attribution,
        fingerprint=manifest.fingerprint,
        tasks=manifest.tasks,
        config=config,
        rows=rows,
        bayes=bayes_metrics(data.folder),
    )


def temperatures(
    data: PreparedData, config: RunConfig, *, seeds: int, engine: Engine, folder: Path
) -> list[Temperature]:
    """Trains AdaFTR and analyses its temperatures for each pair of tasks. The arguments are those
    of ``compare``.

    Raises:
        ConfigError: the data have a single task.
        TrainingError: a run diverged.
        EngineError: a training process was killed, or the cluster fails.
        CheckpointError: the checkpoint of a run is missing or damaged.
    """
    wanted, jobs, outcomes = run_rows(
        "temperature", data, config, seeds=seeds, engine=engine, folder=folder
    )
    check_none_diverged(wanted, jobs, outcomes)
    return analyse(data, [job for *_, job in jobs])
