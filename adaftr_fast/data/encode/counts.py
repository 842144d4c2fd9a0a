"""Counts distinct values over a stream of batches. Vocabularies and quantiles are computed from the
counts.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array

# rows of unmerged counts, beside as many as there are merged ones, before they are merged
COMPACT_ROWS = 1 << 16
DENSE_RATIO = 4  # integers from the smallest to the largest one, for each value of a batch


class ValueCounts:
    """Counts of the distinct values of one column, without missing values.

    Counts of disjoint subsets of the rows can be merged. Values become text once a subset has text:
    uint64 is int64 or text, depending on its values.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._tables: list[pa.Table] = []
        self._uncompacted_rows = 0

    def update(self, values: pa.Array) -> None:
        """Adds a batch of values of type ``kind``, or of text."""
        values = values.drop_null()
        found = _dense_counts(values) if pa.types.is_int64(values.type) else None
        self._append(pa.table(found or pc.value_counts(values).flatten(), ["value", "count"]))

    def merge(self, other: ValueCounts) -> None:
        """Adds the counts of another subset of the rows."""
        for table in other._tables:
            self._append(table)

    def table(self) -> pa.Table:
        """Returns columns ``value`` and ``count`` (int64), one row per distinct value, in ascending
        order of value.
        """
        self._compact()
        return self._tables[0].sort_by("value")

    def quantiles(self, buckets: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct values in ascending order, and those at which ``buckets - 1``
        quantiles lie.
        """
        table = self.table()
        values = table["value"].to_numpy()
        cumulative = np.cumsum(table["count"].to_numpy())
        return values, values[quantile_positions(cumulative, buckets)] if len(values) else values

    def _append(self, table: pa.Table) -> None:
        if table["value"].type != self._kind:
            self._kind = pa.string()
            self._tables = [_as_text(each) for each in self._tables]
            table = _as_text(table)
        self._tables.append(table)
        self._uncompacted_rows += table.num_rows
        if self._uncompacted_rows > COMPACT_ROWS + self._tables[0].num_rows:
            self._compact()

    def _compact(self) -> None:
        self._uncompacted_rows = 0
        if len(self._tables) == 1:
            return  # every table has distinct values
        empty = pa.table({"value": pa.array([], self._kind), "count": pa.array([], pa.int64())})
        whole = pa.concat_tables([empty, *self._tables])
        # not by group_by, in whose hash table floats that are whole collide
        values = one_array(whole["value"].dictionary_encode())
        counts = np.bincount(values.indices, whole["count"], len(values.dictionary))
        self._tables = [pa.table({"value": values.dictionary, "count": counts.astype(np.int64)})]


def _dense_counts(values: pa.Array) -> list[pa.Array] | None:
    """Returns the distinct values of int64 [n] and their counts by an array of all integers
    between the smallest and the largest one; None if these are many more than the values.
    """
    plain = values.to_numpy()
    if not len(plain):
        return None
    lowest = plain.min()
    if int(plain.max()) - int(lowest) >= DENSE_RATIO * len(plain):
        return None
    counts = np.bincount(plain - lowest)
    present = np.flatnonzero(counts)
    return [pa.array(present + lowest), pa.array(counts[present])]


def _as_text(table: pa.Table) -> pa.Table:
    return pa.table({"value": table["value"].cast(pa.string()), "count": table["count"]})


def merged(files: Iterable[BinaryIO]) -> Any:
    """Reads the next counts, moments or groups that ``pickle`` wrote to each of at least one file,
    and merges them.
    """
    parts = map(pickle.load, files)  # one at a time, since files share many values
    first = next(parts)
    for each in parts:
        first.merge(each)
    return first


def quantile_positions(cumulative: np.ndarray, buckets: int) -> np.ndarray:
    """Returns the positions at which ``buckets - 1`` quantiles lie, ascending and each once.

    Args:
        cumulative: cumulative counts [n] of the values in ascending order.
    """
    total = cumulative[-1]
    if buckets <= len(cumulative):
        targets = total * (np.arange(1, buckets) / buckets)
        return np.unique(np.searchsorted(cumulative, targets))
    # With more buckets than values, ask of each value whether one of the targets in its interval
    # exists. Memory does not depend on ``buckets``: the targets next to the ends and the middle of
    # the interval tell.
    below = np.concatenate([[0], cumulative[:-1]])
    found = np.zeros(len(cumulative), bool)
    for place in (below, (below + cumulative) / 2, cumulative):
        nearest = np.rint(place / total * buckets)
        for step in (-1.0, 0.0, 1.0):
            number = np.clip(nearest + step, 1.0, float(buckets - 1))
            target = total * (number / buckets)
            found |= (below < target) & (target <= cumulative)
    return np.flatnonzero(found)
