"""Means over seeds, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

SIGNIFICANT = 0.05  # the significance level of the paper (Table 4)
ROUNDING = 1e-9  # percentage points; differences this close are equal, and their t-test is undefined


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
        p: p-value of the two-sided paired t-test; nan for fewer than two pairs or equal differences.
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
    """Corrects the p-values of several tests by Holm's method, which bounds the chance of one false finding among them.

    Undefined values (nan) are no tests.
    """
    tests = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * value))
        corrected[place] = largest
    return corrected


def summarize(values: Sequence[float]) -> Spread:
    """Computes mean and standard deviation; nan without values."""
    if not values:
        return Spread(math.nan, math.nan, 0)
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compares ``values`` with ``reference``, which belong to the same seeds in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    if len(values) != len(reference):
        raise ValueError(f"paired: expected as many values as references, got {len(values)} and {len(reference)}")
    each = np.subtract(values, reference)
    spread = summarize(each.tolist())
    testable = len(each) > 1 and np.ptp(each) > ROUNDING
    p = float(ttest_rel(values, reference).pvalue) if testable else math.nan
    return Difference(spread.mean, spread.std, p, int(np.count_nonzero(each > 0)), len(each))
