"""Counts distinct values over a stream of batches. Vocabularies and quantiles are computed from the counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COMPACT_ROWS = 1 << 20  # rows of unmerged counts held before they are compacted


class ValueCounts:
    """Counts of the distinct values of one column, without missing values.

    Counts of disjoint subsets of the rows can be merged.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._tables: list[pa.Table] = []
        self._uncompacted_rows = 0

    def update(self, values: pa.Array) -> None:
        """Adds a batch of values of type ``kind``."""
        counted = pc.value_counts(values.drop_null())
        self._append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))

    def merge(self, other: ValueCounts) -> None:
        """Adds the counts of another subset of the rows."""
        for table in other._tables:
            self._append(table)

    def table(self) -> pa.Table:
        """Returns columns ``value`` and ``count`` (int64), one row per distinct value, in ascending order of value."""
        self._compact()
        return self._tables[0].sort_by("value")

    def write(self, path: Path) -> None:
        """Writes the table to a parquet file."""
        pq.write_table(self.table(), path, compression="lz4")

    @classmethod
    def read(cls, paths: Sequence[Path]) -> ValueCounts:
        """Reads and merges the counts of at least one file."""
        counts = cls(pq.read_schema(paths[0]).field("value").type)
        for path in paths:
            counts._append(pq.ParquetFile(path).read())  # one file at a time, since files share many values
        return counts

    def _append(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._uncompacted_rows += table.num_rows
        if self._uncompacted_rows > COMPACT_ROWS:
            self._compact()

    def _compact(self) -> None:
        empty = pa.table({"value": pa.array([], self._kind), "count": pa.array([], pa.int64())})
        summed = pa.concat_tables([empty, *self._tables]).group_by("value").aggregate([("count", "sum")])
        self._tables = [pa.table({"value": summed["value"], "count": summed["count_sum"]})]
        self._uncompacted_rows = 0
