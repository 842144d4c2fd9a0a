"""Numbers groups (users) for GAUC."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.encode.canonical import canonical_text, canonical_values
from adaftr_fast.data.encode.counts import COMPACT_ROWS
from adaftr_fast.errors import DataError


class Groups:
    """Distinct groups of some rows, numbered from 0 in order of appearance. A missing group is -1.

    Args:
        name: column of the groups, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._chunks: list[pa.Array] = []

    @classmethod
    def from_columns(cls, name: str, columns: Iterable[pa.Array]) -> Groups:
        """Collects the groups of a column given in chunks.

        Raises:
            DataError: the values are neither text nor numbers.
        """
        groups = cls(name)
        for values in columns:
            groups._chunks.append(pc.unique(groups._canonical(values)))
            if sum(map(len, groups._chunks)) > COMPACT_ROWS + len(groups._chunks[0]):
                groups._chunks = [groups.values]
        groups._chunks = [groups.values]
        return groups

    @property
    def values(self) -> pa.Array:
        """The groups in order of their numbers, int64 or text."""
        if not self._chunks:
            return pa.array([], pa.null())
        return pc.unique(pa.concat_arrays(self._chunks)).drop_null()

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes values [n] as int64 numbers [n]."""
        values, (known,) = self._canonical(values), self._chunks
        known = known.cast(values.type)  # of type null where every group is missing
        numbers = pc.index_in(values, value_set=known, skip_nulls=True)
        return pc.fill_null(numbers.cast(pa.int64()), -1)

    def write(self, path: Path) -> None:
        """Writes the groups to a parquet file."""
        pq.write_table(pa.table({"group": self.values}), path, compression="lz4", write_page_checksum=True)

    @classmethod
    def read(cls, name: str, paths: Iterable[Path]) -> Groups:
        """Reads the groups of consecutive subsets of the rows, one file each."""
        columns = (
            pq.ParquetFile(path, page_checksum_verification=True).read()["group"].combine_chunks() for path in paths
        )
        return cls.from_columns(name, (column for column in columns if len(column)))

    def _canonical(self, values: pa.Array) -> pa.Array:
        try:
            always_fits = pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type)
            return canonical_values(values) if always_fits else canonical_text(values)
        except pa.ArrowException as error:
            raise DataError(
                f"group {self._name}: expected text or numbers, got values of type {values.type}"
            ) from error
