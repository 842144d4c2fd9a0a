"""Moments of the numbers of a dense field, and the encoding that is fitted to them.

Sums are exact: how rows are divided into batches and shards does not change them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
import pyarrow as pa

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError
from adaftr_fast.nn.encoding import SMALLEST, EncodingKind, NumericEncoding

BITS = 24  # of the mantissa of a float32 number; a square has twice as many


@dataclass
class Moments:
    """Count, sums and range of the numbers x of a dense field, or of u if the encoding is ``log``
    (NumericEncoding).

    Attributes:
        count: rows with a number.
        missing: rows without.
        total: sum of the numbers.
        squares: sum of their squares.
        low: the smallest number; inf without numbers.
        high: the largest number; -inf without numbers.
        values: counts of the distinct numbers, for the quantiles of ``piecewise``; None for other
            encodings.
    """

    count: int
    missing: int
    total: Fraction
    squares: Fraction
    low: float
    high: float
    values: ValueCounts | None

    @classmethod
    def of(cls, numbers: pa.Array, encoding: EncodingKind) -> Self:
        """Returns the moments of float32 numbers [n], NaN = missing, n <= 2^29."""
        present = numbers.filter(~np.isnan(numbers.to_numpy()))
        x = present.to_numpy().astype(np.float64)
        # u is float32, as the model computes it, so the squares are exact in float64.
        u = x
        if encoding == "log":
            u = (np.sign(x) * np.log1p(np.abs(x))).astype(np.float32).astype(np.float64)
        values = ValueCounts(numbers.type) if encoding == "piecewise" else None
        if values is not None:
            values.update(present)
        low = float(u.min(initial=np.inf))
        high = float(u.max(initial=-np.inf))
        return cls(
            len(u), len(numbers) - len(u), _exact_sum(u), _exact_sum(u * u), low, high, values
        )

    def merge(self, other: Self) -> None:
        """Adds the moments of another subset of the rows."""
        self.count += other.count
        self.missing += other.missing
        self.total += other.total
        self.squares += other.squares
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        if self.values is not None and other.values is not None:
            self.values.merge(other.values)


def _exact_sum(numbers: np.ndarray) -> Fraction:
    """Returns the sum of float64 numbers [n] with at most 2 BITS bits each, exact for n <= 2^(53 -
    BITS).
    """
    if not len(numbers):
        return Fraction(0)
    # as most columns are, in a fraction of the time
    if np.abs(numbers).max() < 2.0**62 / len(numbers) and (np.rint(numbers) == numbers).all():
        return Fraction(int(numbers.astype(np.int64).sum()))
    mantissas, exponents = np.frexp(numbers)
    lowest = int(exponents.min())
    places = exponents - lowest
    scaled = np.ldexp(mantissas, BITS)
    upper = np.floor(scaled)
    lower = np.ldexp(scaled - upper, BITS)
    total = 0
    # sums of integers below 2^53, which float64 adds exactly
    for part, shift in ((upper, BITS), (lower, 0)):
        for place, each in enumerate(np.bincount(places, part).tolist()):
            total += int(each) << (place + shift)
    return total * Fraction(2) ** (lowest - 2 * BITS)


def fit_dense(field: Field, moments: Moments) -> NumericEncoding:
    """Fits the encoding of a dense field.

    Args:
        moments: those of the training rows.

    Raises:
        DataError: all values are missing.
    """
    if not moments.count:
        raise DataError(
            f"field {field.name}: expected numbers in the training split, got missing values only"
        )
    assert field.encoding is not None  # a dense field has one
    average = moments.total / moments.count
    # exact below the root, so nothing cancels
    std = math.sqrt(moments.squares / moments.count - average**2)
    # The model computes in float32, in which it subtracts the same mean from the ends as from the
    # other values.
    low = moments.low
    high = moments.high
    mean = float(np.float32(np.clip(float(average), low, high)))
    std = 1.0 if low == high else max(float(np.float32(std)), SMALLEST)
    edges = [] if moments.values is None else _edges(moments.values, field.buckets)
    return NumericEncoding(
        field.name, field.encoding, mean, std, low, high, edges, moments.missing > 0
    )


def _edges(counts: ValueCounts, bins: int) -> list[float]:
    """Returns the smallest value, the quantiles and the largest value, each once, for at most
    ``bins`` bins.
    """
    values, inner = counts.quantiles(bins)
    edges: list[float] = (
        np.unique(np.concatenate([values[:1], inner, values[-1:]])).astype(np.float64).tolist()
    )
    return edges if len(edges) > 1 else []
