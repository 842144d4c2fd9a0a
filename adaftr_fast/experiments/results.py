"""The results of an experiment by row, and their comparisons. AUC and GAUC are in percent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from adaftr_fast.config import RunConfig
from adaftr_fast.experiments.catalog import Experiment, Variant
from adaftr_fast.experiments.jobs import Outcome
from adaftr_fast.experiments.statistics import Difference, Spread, paired, summarize
from adaftr_fast.training.evaluation import TaskMetrics

METRICS = ("auc", "gauc")


@dataclass(frozen=True)
class Row:
    """A variant and its outcomes by seed."""

    variant: Variant
    outcomes: dict[int, Outcome]

    @property
    def title(self) -> str:
        return self.variant.title

    def scores(self, task: str, metric: str) -> dict[int, float]:
        """Returns a test metric in percent by seed, of the runs that have it."""
        values = {seed: 100 * each.test.get(task, {}).get(metric, math.nan) for seed, each in self.outcomes.items()}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    def spread(self, task: str, metric: str) -> Spread:
        return summarize(list(self.scores(task, metric).values()))


@dataclass(frozen=True)
class Comparison:
    """The difference between two rows in one metric of one task."""

    title: str
    against: str
    task: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class Results:
    """The results of an experiment.

    Attributes:
        experiment: the experiment.
        dataset: the name of the data set.
        attribution: the attribution of the data set.
        fingerprint: the fingerprint of the prepared data.
        tasks: the tasks.
        config: the configuration that all rows have in common.
        rows: the rows.
        bayes: test metrics of the true probabilities, as fractions. Empty if the data set does not hold them.
    """

    experiment: Experiment
    dataset: str
    attribution: str
    fingerprint: str
    tasks: list[str]
    config: RunConfig
    rows: list[Row]
    bayes: TaskMetrics = field(default_factory=dict)

    def columns(self) -> list[tuple[str, str]]:
        """Returns the pairs of task and metric that at least one run has. GAUC requires groups."""
        every = [(task, metric) for task in self.tasks for metric in METRICS]
        return [column for column in every if any(row.scores(*column) for row in self.rows)]

    def optimum(self, task: str, metric: str) -> float | None:
        """Returns the metric of the true probabilities in percent, or None if they are unknown."""
        value = self.bayes.get(task, {}).get(metric, math.nan)
        return None if math.isnan(value) else 100 * value

    def row(self, title: str) -> Row:
        return next(row for row in self.rows if row.title == title)

    def compare(self, title: str, against: str, task: str, metric: str) -> Difference:
        """Compares two rows over the seeds that both have."""
        ours, theirs = (self.row(each).scores(task, metric) for each in (title, against))
        seeds = sorted(ours.keys() & theirs.keys())
        return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])

    def comparisons(self) -> Iterator[Comparison]:
        """Yields the comparisons of the experiment."""
        for row in self.rows:
            for other in row.variant.against:
                for task, metric in self.columns():
                    difference = self.compare(row.title, other, task, metric)
                    yield Comparison(row.title, other, task, metric, difference)
