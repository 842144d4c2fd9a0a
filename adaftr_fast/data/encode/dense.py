"""Fits the encodings of dense numeric fields to the moments of the training split."""

from __future__ import annotations

import math

import numpy as np

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.encoders import quantile_positions
from adaftr_fast.data.encode.moments import Moments
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError
from adaftr_fast.nn.dense import SMALLEST, NumericEncoding


def fit_dense(field: Field, moments: Moments) -> NumericEncoding:
    """Fits the encoding of a dense field.

    Args:
        moments: those of the training rows.

    Raises:
        DataError: all values are missing.
    """
    if not moments.count:
        raise DataError(f"field {field.name}: expected numbers in the training split, got missing values only")
    assert field.encoding is not None  # a dense field has one
    average = moments.total / moments.count
    std = math.sqrt(moments.squares / moments.count - average**2)  # exact below the root, so nothing cancels
    # The model computes in float32, in which it subtracts the same mean from the ends as from the other values.
    low, high = moments.low, moments.high
    mean = float(np.float32(np.clip(float(average), low, high)))
    std = 1.0 if low == high else max(float(np.float32(std)), SMALLEST)
    edges = [] if moments.values is None else _edges(moments.values, field.buckets)
    return NumericEncoding(field.name, field.encoding, mean, std, low, high, edges, moments.missing > 0)


def _edges(counts: ValueCounts, bins: int) -> list[float]:
    """Returns the smallest value, the quantiles and the largest value, each once, for at most ``bins`` bins."""
    table = counts.table()
    values, weights = table["value"].to_numpy().astype(np.float64), table["count"].to_numpy()
    inner = values[quantile_positions(np.cumsum(weights), bins)]
    edges: list[float] = np.unique(np.concatenate([values[:1], inner, values[-1:]])).tolist()
    return edges if len(edges) > 1 else []
