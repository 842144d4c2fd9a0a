"""Groups (users) by number, for GAUC."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode import plain_values


class GroupNumbers:
    """Numbers groups (users) from 0 in order of appearance; a missing group is -1."""

    def __init__(self) -> None:
        self._known: pa.Array | None = None

    def encode(self, values: pa.Array) -> pa.Array:
        """Values [n] of any one type to int64 numbers [n]."""
        values = plain_values(values)
        known = values.slice(0, 0) if self._known is None else self._known
        distinct = pc.unique(values).drop_null()
        fresh = distinct.filter(pc.invert(pc.is_in(distinct, value_set=known)))
        self._known = pa.concat_arrays([known, fresh])
        return pc.fill_null(pc.index_in(values, value_set=self._known, skip_nulls=True).cast(pa.int64()), -1)
