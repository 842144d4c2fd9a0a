"""Numbers groups (users) for GAUC."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.canonical import canonical_text, canonical_values
from adaftr_fast.data.encode.counts import COMPACT_ROWS
from adaftr_fast.data.encode.lookup import Lookup
from adaftr_fast.errors import DataError

EMPTY = pa.array([], pa.null())


class Groups:
    """Distinct groups of some rows, numbered from 0 in order of appearance. A missing group is -1.

    Args:
        name: column of the groups, for errors.
        known: distinct groups in order of appearance.
    """

    def __init__(self, name: str, known: pa.Array = EMPTY) -> None:
        self.name = name
        self._known = Lookup(known)
        self._added: list[pa.Array] = []  # distinct groups each, which may be known

    def __reduce__(self) -> tuple[type[Groups], tuple[str, pa.Array]]:
        return Groups, (self.name, self.values)

    def add(self, values: pa.Array) -> None:
        """Adds the groups of further rows.

        Raises:
            DataError: the values are neither text nor numbers.
        """
        values = _canonical(self.name, values)
        if self._known.is_dense:  # in a sixth of the time of a hash table
            values = values.filter(pc.equal(self._known.find(values), -1))
        self._append(pc.unique(values).drop_null())

    def merge(self, other: Groups) -> None:
        """Adds the groups of the rows that follow."""
        self._append(other.values)

    def _append(self, values: pa.Array) -> None:
        if len(values):
            self._added.append(values)
        if sum(map(len, self._added)) > COMPACT_ROWS + len(self._known.known):
            self._compact()

    @property
    def values(self) -> pa.Array:
        """The groups in order of their numbers, int64 or text; of type null if there are none."""
        self._compact()
        return self._known.known

    def _compact(self) -> None:
        if self._added:
            known = [self._known.known] if len(self._known.known) else []
            self._known = Lookup(pc.unique(pa.concat_arrays([*known, *self._added])))
            self._added.clear()

    def encode(self, values: pa.Array) -> pa.Array:
        """Encodes values [n] as int64 numbers [n], once all groups are added."""
        self._compact()
        return self._known.find(_canonical(self.name, values)).cast(pa.int64())


def _canonical(name: str, values: pa.Array) -> pa.Array:
    try:
        always_fits = pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type)
        return canonical_values(values) if always_fits else canonical_text(values)
    except pa.ArrowException as error:
        raise DataError(
            f"group {name}: expected text or numbers, got values of type {values.type}"
        ) from error
