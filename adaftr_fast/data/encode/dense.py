"""Fits the encodings of dense numeric fields to the counted values of the training split."""

from __future__ import annotations

import numpy as np

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.encoders import quantile_positions
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError
from adaftr_fast.nn.dense import SMALLEST, NumericEncoding


def fit_dense(field: Field, counts: ValueCounts) -> NumericEncoding:
    """Fits the encoding of a dense field. Sums are in float64 and in order of the values, so shards give equal results.

    Args:
        counts: counts of float32 values, NaN = missing, as ``field_values`` returns them.

    Raises:
        DataError: all values are missing.
    """
    table = counts.table()
    values, weights = table["value"].to_numpy().astype(np.float64), table["count"].to_numpy()
    present = ~np.isnan(values)
    missing, values, weights = not present.all(), values[present], weights[present]
    if not len(values):
        raise DataError(f"field {field.name}: expected numbers in the training split, got missing values only")
    assert field.encoding is not None  # a dense field has one
    u = np.sign(values) * np.log1p(np.abs(values)) if field.encoding == "log" else values
    total = weights.sum()
    mean = (u * weights).sum() / total
    std = np.sqrt((np.square(u - mean) * weights).sum() / total)
    # The model computes in float32, in which it subtracts the same mean from the ends as from the other values.
    low, mean, high = (float(np.float32(each)) for each in (u[0], np.clip(mean, u[0], u[-1]), u[-1]))
    std = 1.0 if low == high else max(float(np.float32(std)), SMALLEST)
    edges = _edges(values, weights, field.buckets) if field.encoding == "piecewise" else []
    return NumericEncoding(field.name, field.encoding, mean, std, low, high, edges, missing)


def _edges(values: np.ndarray, weights: np.ndarray, bins: int) -> list[float]:
    """Returns the smallest value, the quantiles and the largest value, each once, for at most ``bins`` bins."""
    inner = values[quantile_positions(np.cumsum(weights), bins)]
    edges: list[float] = np.unique(np.concatenate([values[:1], inner, values[-1:]])).tolist()
    return edges if len(edges) > 1 else []
