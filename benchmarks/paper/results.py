"""The results of an experiment by row, from the lines of a ``Store``, their spread over seeds, and
paired comparisons; AUC and GAUC in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import ttest_rel

from adaftr_fast.config import RunConfig
from adaftr_fast.training.evaluation import TaskMetrics
from benchmarks.cells import Record
from benchmarks.paper.catalog import Experiment, Variant, changed_options, experiment
from benchmarks.render import Case, Cases

SIGNIFICANT = 0.05  # the significance level of the paper (Table 4)
# percentage points; differences this close are equal, and their t-test is undefined
ROUNDING = 1e-9


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1; nan for one value) of ``count`` values."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """The differences between two rows, seed by seed.

    Attributes:
        mean, std: mean and standard deviation of the differences; std is nan for one pair.
        p: p-value of the two-sided paired t-test; nan for fewer than two pairs or equal
            differences.
        higher: the number of pairs in which the first row is higher.
        pairs: the number of pairs.
    """

    mean: float
    std: float
    p: float
    higher: int
    pairs: int

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def holm(p: Sequence[float]) -> list[float]:
    """Corrects the p-values of several tests by Holm's method, which bounds the chance of one false
    finding among them.

    Undefined values (nan) are no tests.
    """
    tests = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    corrected = [math.nan] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * value))
        corrected[place] = largest
    return corrected


def summarize(values: Sequence[float]) -> Spread:
    """Computes mean and standard deviation; nan without values."""
    if not values:
        return Spread(math.nan, math.nan, 0)
    return Spread(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        len(values),
    )


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compares ``values`` with ``reference``, which belong to the same seeds in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    if len(values) != len(reference):
        raise ValueError(
            f"paired: expected as many values as references, got {len(values)} and {len(reference)}"
        )
    each = np.subtract(values, reference)
    spread = summarize(each.tolist())
    testable = len(each) > 1 and np.ptp(each) > ROUNDING
    p = float(ttest_rel(values, reference).pvalue) if testable else math.nan
    return Difference(spread.mean, spread.std, p, int(np.count_nonzero(each > 0)), len(each))


METRICS = ("auc", "gauc")
Split = Literal["test", "validation"]
NAMES = ("set", "options", "seed")  # of a run
TRUTH = {"model.name": "true probabilities"}  # the options of their line, which has no seed


def found(record: Record) -> Case:
    """Returns what the line of a run holds of its record; metrics are fractions."""
    kept = {
        split: {task: metrics(each) for task, each in getattr(record, split).items()}
        for split in ("validation", "test")
    }
    return {
        "epochs": record.epochs,
        "best epoch": record.best_epoch,
        "dead": record.dead_tasks,
        "error": record.error,
        **kept,
        "expected": _rounded(record.expected),
        "learned": {name: _rounded(points) for name, points in record.learned.items()},
    }


def metrics(values: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of a task that lines hold."""
    return _rounded({name: values[name] for name in (*METRICS, "logloss") if name in values})


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Row:
    """A variant and the lines of its runs by seed."""

    variant: Variant
    runs: dict[int, Case]

    @property
    def title(self) -> str:
        return self.variant.title

    def scores(self, task: str, metric: str, split: Split = "test") -> dict[int, float]:
        """Returns a metric in percent by seed, of the runs that have it."""
        known = {seed: run[split].get(task, {}) for seed, run in self.runs.items()}
        return {seed: 100 * each[metric] for seed, each in known.items() if metric in each}

    def spread(self, task: str, metric: str) -> Spread:
        return summarize(list(self.scores(task, metric).values()))


@dataclass(frozen=True)
class Comparison:
    """The difference between two rows in one metric of one task.

    Attributes:
        title, against: the titles of the rows.
        task, metric: the task and the metric.
        difference: the difference on the test split.
        validation: the difference on the validation split, by which the weights are chosen.
        corrected: the p-value of ``difference`` after Holm's correction over all comparisons of the
            experiment.
    """

    title: str
    against: str
    task: str
    metric: str
    difference: Difference
    validation: Difference
    corrected: float


@dataclass(frozen=True)
class Results:
    """The results of an experiment.

    Attributes:
        experiment: the experiment.
        dataset: the name of the data set.
        tasks: the tasks.
        config: the configuration that all rows have in common.
        rows: the rows.
        bayes: test metrics of the true probabilities, as fractions. Empty if the data set does not
            hold them.
    """

    experiment: Experiment
    dataset: str
    tasks: list[str]
    config: RunConfig
    rows: list[Row]
    bayes: TaskMetrics = field(default_factory=dict)

    def seeds(self) -> list[int]:
        return sorted({seed for row in self.rows for seed in row.runs})

    def columns(self) -> list[tuple[str, str]]:
        """Returns the pairs of task and metric that at least one run has. GAUC requires groups."""
        every = [(task, metric) for task in self.tasks for metric in METRICS]
        return [column for column in every if any(row.scores(*column) for row in self.rows)]

    def optimum(self, task: str, metric: str) -> str:
        """Returns the metric of the true probabilities in percent, or "-" if they are unknown."""
        value = self.bayes.get(task, {}).get(metric, math.nan)
        return "-" if math.isnan(value) else f"{100 * value:.3f}"

    def row(self, title: str) -> Row:
        return next(row for row in self.rows if row.title == title)

    def compare(
        self, title: str, against: str, task: str, metric: str, split: Split = "test"
    ) -> Difference:
        """Compares two rows over the seeds that both have."""
        ours, theirs = (self.row(each).scores(task, metric, split) for each in (title, against))
        seeds = sorted(ours.keys() & theirs.keys())
        return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])

    def comparisons(self) -> list[Comparison]:
        """Returns the comparisons of the experiment."""
        pairs = [(row.title, other) for row in self.rows for other in row.variant.against]
        every = [(*pair, *column) for pair in pairs for column in self.columns()]
        differences = [self.compare(*each) for each in every]
        tests = {_test(*each): found.p for each, found in zip(every, differences)}
        corrected = dict(zip(tests, holm(list(tests.values()))))
        validation = [self.compare(*each, "validation") for each in every]
        return [
            Comparison(*each, difference, chosen, corrected[_test(*each)])
            for each, difference, chosen in zip(every, differences, validation)
        ]

    def tests(self) -> int:
        """Returns the number of different tests."""
        found = self.comparisons()
        return len(
            {
                _test(c.title, c.against, c.task, c.metric)
                for c in found
                if not math.isnan(c.corrected)
            }
        )


def collect(name: str, config: RunConfig, tasks: list[str], lines: Cases) -> Results:
    """Returns the results of experiment ``name`` from the lines of a set, over the seeds that every
    row has.

    Args:
        name: the name of the experiment.
        config: the options that all rows have in common.
        tasks: the tasks of the set.
        lines: the lines of all its runs, and that of its true probabilities if they are known.

    Raises:
        ConfigError: there are too few tasks.
    """
    wanted = experiment(name, config.model, tasks)
    runs = [
        {line["seed"]: line for line in lines if line["options"] == options}
        for row in wanted.variants
        for options in [changed_options(config.with_options(model=row.changes))]
    ]
    seeds = set.intersection(*map(set, runs))
    return Results(
        experiment=wanted,
        dataset=lines[0]["set"],
        tasks=tasks,
        config=config,
        rows=[
            Row(row, {seed: run for seed, run in each.items() if seed in seeds})
            for row, each in zip(wanted.variants, runs)
        ],
        bayes=next((line["test"] for line in lines if line["options"] == TRUTH), {}),
    )


def _test(title: str, against: str, task: str, metric: str) -> tuple[frozenset[str], str, str]:
    """Returns what identifies a test: both directions of a comparison are the same."""
    return frozenset((title, against)), task, metric
