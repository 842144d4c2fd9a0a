"""Experiments on the same data: plans their cells, trains the missing ones and collects the
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.bayes import bayes_metrics
from benchmarks.cells import Cell, Record, plan, train_all
from benchmarks.paper.catalog import Experiment, Variant, experiment
from benchmarks.paper.results import Results, Row

Planned = tuple[int, Variant, Cell]
"""A seed, a row and their cell."""


@dataclass(frozen=True)
class Study:
    """Experiments on the same data, which share runs.

    Attributes:
        data: the prepared data.
        config: the options that all rows have in common.
        seeds: the number of seeds per row, from ``config.training.seed`` upwards.
        jobs: the number of parallel runs.
        folder: contains ``runs/``.
    """

    data: PreparedData
    config: RunConfig
    seeds: int
    jobs: int
    folder: Path

    def plan(self, wanted: Experiment) -> list[Planned]:
        """Returns seed, row and cell of all runs of an experiment.

        All rows of a seed come before the next seed, so an interrupted experiment contains complete
        comparisons.
        """
        first = self.config.training.seed
        seeds = range(first, first + self.seeds)
        root = self.folder / "runs"
        return [
            (seed, variant, plan(self.data, variant.changes, self.config, seed, root))
            for seed, variant in product(seeds, wanted.variants)
        ]

    def compare(self, name: str) -> Results:
        """Runs an experiment that compares rows.

        Raises:
            ConfigError: the experiment needs more tasks.
        """
        wanted, planned, records = self._run(name)
        rows = [
            Row(
                variant,
                {seed: records[cell.key] for seed, each, cell in planned if each is variant},
            )
            for variant in wanted.variants
        ]
        return Results(
            experiment=wanted,
            dataset=self.data.manifest.dataset,
            attribution=self.data.manifest.attribution,
            tasks=self.data.manifest.tasks,
            config=self.config,
            rows=rows,
            bayes=bayes_metrics(self.data.folder),
        )

    def train(self, name: str) -> list[Planned]:
        """Trains the runs of an experiment that needs all their models.

        Raises:
            ConfigError: the experiment needs more tasks.
            TrainingError: a run diverged.
        """
        _, planned, records = self._run(name)
        for seed, _, cell in planned:
            if error := records[cell.key].error:
                raise TrainingError(f"{name}: seed {seed} diverged: {error}")
        return planned

    def _run(self, name: str) -> tuple[Experiment, list[Planned], dict[str, Record]]:
        """Returns an experiment, what it plans, and the records by key."""
        wanted = experiment(name, self.config.model, self.data.manifest.tasks)
        planned = self.plan(wanted)
        return wanted, planned, train_all([cell for *_, cell in planned], self.jobs)
