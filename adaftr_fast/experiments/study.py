"""Runs experiments: plans the jobs, runs the unfinished ones and collects the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Study:
    """Experiments on the same data, which share runs.

    Attributes:
        data: the prepared data.
        config: the configuration that all rows have in common.
        seeds: the number of seeds per row, from ``config.training.seed`` upwards.
        engine: the engine that runs the jobs.
        folder: contains ``runs/``.
    """

    data: PreparedData
    config: RunConfig
    seeds: int
    engine: Engine
    folder: Path

    def plan(self, wanted: Experiment) -> Iterator[Planned]:
        """Yields seed, row and job of all runs of an experiment.

        All rows of a seed come before the next seed, so an interrupted experiment contains complete
        comparisons.
        """
        first = self.config.training.seed
        for seed, variant in product(range(first, first + self.seeds), wanted.variants):
            yield seed, variant, plan(self.data, variant, self.config, seed, self.folder / "runs")

    def compare(self, name: str) -> Results:
        """Runs an experiment that compares rows.

        Raises:
            ConfigError: the experiment is unknown or needs more tasks.
            EngineError: a training process was killed, or the cluster fails.
        """
        manifest = self.data.manifest
        wanted, jobs, outcomes = self._run(name)
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
            config=self.config,
            rows=rows,
            bayes=bayes_metrics(self.data.folder),
        )

    def train(self, name: str) -> list[Planned]:
        """Trains the runs of an experiment that needs all their models.

        Raises:
            ConfigError, EngineError: as ``compare``.
            TrainingError: a run diverged.
        """
        wanted, jobs, outcomes = self._run(name)
        for seed, _, job in jobs:
            if error := outcomes[job.key].error:
                raise TrainingError(f"{wanted.name}: seed {seed} diverged: {error}")
        return jobs

    def _run(self, name: str) -> tuple[Experiment, list[Planned], dict[str, Outcome]]:
        """Returns an experiment, its jobs with seeds and rows, and the outcomes by key."""
        wanted = experiment(name, self.config.model, self.data.manifest.tasks)
        jobs = list(self.plan(wanted))
        progress = self.config.training.progress
        return (
            wanted,
            jobs,
            run_all([job for *_, job in jobs], engine=self.engine, progress=progress),
        )
