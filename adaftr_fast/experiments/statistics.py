"""Means over seeds and paired differences, n seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

SIGNIFICANT = 0.05  # the paper's level (Table 4)
ROUNDING = 1e-9  # points of 100; differences this close to one another are equal, and a t-test of them means nothing


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1; nan for one value) of ``count`` values."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A row less another, seed by seed.

    Attributes:
        mean, std: of the differences; std is nan for one pair.
        p: of the two-sided paired t-test; nan where it is undefined: fewer than two pairs, or equal differences.
        higher: pairs in which the first is the higher.
        pairs: how many there are.
    """

    mean: float
    std: float
    p: float
    higher: int
    pairs: int

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def summarize(values: Sequence[float]) -> Spread:
    """Mean and standard deviation; nan of no values."""
    if not values:
        return Spread(math.nan, math.nan, 0)
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """``values`` less ``reference``, which belong to the same seeds in the same order.

    Raises:
        ValueError: sequences of different lengths.
    """
    if len(values) != len(reference):
        raise ValueError(f"paired: expected as many values as references, got {len(values)} and {len(reference)}")
    each = np.subtract(values, reference)
    spread = summarize(each.tolist())
    testable = len(each) > 1 and np.ptp(each) > ROUNDING
    p = float(ttest_rel(values, reference).pvalue) if testable else math.nan
    return Difference(spread.mean, spread.std, p, int(np.count_nonzero(each > 0)), len(each))
