"""Numbers groups (users) for GAUC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.encode.canonical import canonical_text, canonical_values
from adaftr_fast.data.encode.counts import COMPACT_ROWS
from adaftr_fast.errors import DataError


@dataclass(frozen=True)
class Groups:
    """Distinct groups of some rows, numbered from 0 in order of appearance. A missing group is -1.

    Attributes:
        name: column of the groups, for errors.
        values: the groups in order of their numbers, int64 or text.
    """

    name: str
    values: pa.Array

    @classmethod
    def from_columns(cls, name: str, columns: Iterable[pa.Array]) -> Groups:
        """Collects the groups of a column given in chunks.

        Raises:
            DataError: the values are neither text nor numbers.
        """
        chunks: list[pa.Array] = []
        for values in columns:
            chunks.append(pc.unique(_canonical(name, values)))
            if sum(map(len, chunks)) > COMPACT_ROWS + len(chunks[0]):
                chunks = [_distinct(chunks)]
        return cls(name, _distinct(chunks))

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes values [n] as int64 numbers [n]."""
        values = _canonical(self.name, values)
        known = self.values.cast(values.type)  # of type null where every group is missing
        numbers = pc.index_in(values, value_set=known, skip_nulls=True)
        return pc.fill_null(numbers.cast(pa.int64()), -1)

    def write(self, path: Path) -> None:
        """Writes the groups to a parquet file."""
        pq.write_table(
            pa.table({"group": self.values}), path, compression="lz4", write_page_checksum=True
        )

    @classmethod
    def read(cls, name: str, paths: Iterable[Path]) -> Groups:
        """Reads the groups of consecutive subsets of the rows, one file each."""
        columns = (
            pq.ParquetFile(path, page_checksum_verification=True).read()["group"].combine_chunks()
            for path in paths
        )
        return cls.from_columns(name, (column for column in columns if len(column)))


def _distinct(chunks: list[pa.Array]) -> pa.Array:
    return pc.unique(pa.concat_arrays(chunks)).drop_null() if chunks else pa.array([], pa.null())


def _canonical(name: str, values: pa.Array) -> pa.Array:
    try:
        always_fits = pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type)
        return canonical_values(values) if always_fits else canonical_text(values)
    except pa.ArrowException as error:
        raise DataError(
            f"group {name}: expected text or numbers, got values of type {values.type}"
        ) from error
