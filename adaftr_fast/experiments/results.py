"""The outcomes of an experiment, row by row, and how they compare. AUC and GAUC are in points of 100 from here on."""

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
    """A variant and its outcome for every seed."""

    variant: Variant
    outcomes: dict[int, Outcome]

    @property
    def title(self) -> str:
        return self.variant.title

    def scores(self, task: str, metric: str) -> dict[int, float]:
        """Test metric in points of 100 by seed, of the runs that have it."""
        values = {seed: 100 * each.test.get(task, {}).get(metric, math.nan) for seed, each in self.outcomes.items()}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    def spread(self, task: str, metric: str) -> Spread:
        return summarize(list(self.scores(task, metric).values()))


@dataclass(frozen=True)
class Comparison:
    """A row less the one it is compared with, in one metric of one task."""

    title: str
    against: str
    task: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class Results:
    """An experiment that was run.

    Attributes:
        dataset: the data's name and attribution.
        tasks: the columns of its tables.
        bayes: test metrics of the true probabilities, as fractions, where the data set knows them; else {}.
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
        """Pairs of task and metric that at least one run has: no GAUC without groups."""
        every = [(task, metric) for task in self.tasks for metric in METRICS]
        return [column for column in every if any(row.scores(*column) for row in self.rows)]

    def optimum(self, task: str, metric: str) -> float | None:
        """What the true probabilities reach, in points of 100; None where they are not known."""
        value = self.bayes.get(task, {}).get(metric, math.nan)
        return None if math.isnan(value) else 100 * value

    def row(self, title: str) -> Row:
        return next(row for row in self.rows if row.title == title)

    def compare(self, title: str, against: str, task: str, metric: str) -> Difference:
        """Over the seeds that both rows have."""
        ours, theirs = (self.row(each).scores(task, metric) for each in (title, against))
        seeds = sorted(ours.keys() & theirs.keys())
        return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])

    def comparisons(self) -> Iterator[Comparison]:
        """Every comparison the experiment asks for."""
        for row in self.rows:
            for other in row.variant.against:
                for task, metric in self.columns():
                    difference = self.compare(row.title, other, task, metric)
                    yield Comparison(row.title, other, task, metric, difference)
