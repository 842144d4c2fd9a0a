"""Numbers groups (users) for GAUC."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.canonical import canonical_text, canonical_values
from adaftr_fast.data.encode.counts import COMPACT_ROWS
from adaftr_fast.data.encode.lookup import Lookup
from adaftr_fast.errors import DataError


class Groups:
    """Distinct groups of some rows, numbered from 0 in order of appearance. A missing group is -1.

    Args:
        name: column of the groups, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._chunks: list[pa.Array] = []  # distinct groups each

    def add(self, values: pa.Array) -> None:
        """Adds the groups of further rows.

        Raises:
            DataError: the values are neither text nor numbers.
        """
        self._append(pc.unique(_canonical(self.name, values)).drop_null())

    def merge(self, other: Groups) -> None:
        """Adds the groups of the rows that follow."""
        if len(other.values):  # which have a type
            self._append(other.values)

    def _append(self, values: pa.Array) -> None:
        self._chunks.append(values)
        if sum(map(len, self._chunks)) > COMPACT_ROWS + len(self._chunks[0]):
            self._compact()

    @property
    def values(self) -> pa.Array:
        """The groups in order of their numbers, int64 or text."""
        if len(self._chunks) != 1:
            self._compact()
        return self._chunks[0]

    def _compact(self) -> None:
        empty = pa.array([], pa.null())
        self._chunks = [pc.unique(pa.concat_arrays(self._chunks)) if self._chunks else empty]

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes values [n] as int64 numbers [n], once all groups are known."""
        return self._lookup.find(_canonical(self.name, values)).cast(pa.int64())

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.values)


def _canonical(name: str, values: pa.Array) -> pa.Array:
    try:
        always_fits = pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type)
        return canonical_values(values) if always_fits else canonical_text(values)
    except pa.ArrowException as error:
        raise DataError(
            f"group {name}: expected text or numbers, got values of type {values.type}"
        ) from error
