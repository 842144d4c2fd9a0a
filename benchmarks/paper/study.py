"""Experiments on the same data: plans their cells, trains the missing ones and collects the
results.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.bayes import bayes_metrics
from benchmarks.cells import Cell, plan, train_all
from benchmarks.measure import measured_code
from benchmarks.paper.catalog import Variant, changed_options, experiment
from benchmarks.paper.results import NAMES, TRUTH, Results, collect, found, metrics
from benchmarks.store import Store

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
        path: the results file of the runs.
    """

    data: PreparedData
    config: RunConfig
    seeds: int
    jobs: int
    folder: Path
    path: Path

    def plan(self, name: str) -> list[Planned]:
        """Returns seed, row and cell of all runs of experiment ``name``.

        All rows of a seed come before the next seed, so an interrupted experiment contains complete
        comparisons.

        Raises:
            ConfigError: the experiment needs more tasks.
        """
        wanted = experiment(name, self.config.model, self.data.manifest.tasks)
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
        manifest = self.data.manifest
        store = Store(self.path, NAMES)
        runs = [
            ({"set": manifest.dataset, "options": changed_options(cell.config), "seed": seed}, cell)
            for seed, _, cell in self.plan(name)
        ]
        lines = store.train(runs, found, self.jobs)
        if truth := bayes_metrics(self.data.folder):
            line = {
                "set": manifest.dataset,
                "options": TRUTH,
                "seed": None,
                "data": manifest.fingerprint[:12],
                "commit": measured_code(),
                "test": {task: metrics(values) for task, values in truth.items()},
            }
            store.add([line])
            lines.append(line)
        return collect(name, self.config, manifest.tasks, lines)

    def train(self, name: str) -> list[Planned]:
        """Trains the runs of an experiment that needs all their models.

        Raises:
            ConfigError: the experiment needs more tasks.
            TrainingError: a run diverged.
        """
        planned = self.plan(name)
        records = train_all([cell for *_, cell in planned], self.jobs)
        for seed, _, cell in planned:
            if error := records[cell.key].error:
                raise TrainingError(f"{name}: seed {seed} diverged: {error}")
        return planned
