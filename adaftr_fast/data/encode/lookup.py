"""Finds values among distinct known ones. Shapes: n values."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DENSE_RATIO = 8  # integers from the smallest to the largest one, for each that is known
# Above this many known values, and this many for each value to find, a binary search beats a hash
# table of all known values.
SEARCH_LEAST = 1 << 12
SEARCH_RATIO = 8
UNKNOWN = pa.scalar(-1, pa.int32())


class Lookup:
    """Places of values among distinct known ones.

    Args:
        known: integers or text without missing values.
    """

    def __init__(self, known: pa.Array) -> None:
        self.known = known

    @property
    def is_dense(self) -> bool:
        """Whether the known values are integers that an array finds."""
        return self._dense is not None

    def find(self, values: pa.Array) -> pa.Array:
        """Returns the places of integers or text [n] in ``known``, int32 [n]; -1 for missing and
        unknown ones.
        """
        if not len(self.known):
            return pa.repeat(UNKNOWN, len(values))
        values = values.cast(self.known.type)
        if self._dense:
            lowest, places = self._dense
            # modulo 2^64, so values below the smallest one are large
            above = values.fill_null(0).to_numpy().astype(np.uint64) - lowest
            found = pa.array(places[np.minimum(above, np.uint64(len(places) - 1))])
            return pc.if_else(values.is_valid(), found, UNKNOWN)
        if SEARCH_LEAST + SEARCH_RATIO * len(values) < len(self.known):
            known, places = self._sorted
            position = pa.array(np.minimum(_search(known, values), len(known) - 1))
            is_known = pc.equal(known.take(position), values)
            return pc.if_else(is_known, places.take(position), UNKNOWN).fill_null(-1)
        return pc.index_in(values, value_set=self.known, skip_nulls=True).fill_null(-1)

    @cached_property
    def _dense(self) -> tuple[np.uint64, np.ndarray] | None:
        """The smallest integer, and the places of all integers from it to the largest one, then -1;
        None for text, or if few of these integers are known.
        """
        if not pa.types.is_integer(self.known.type) or not len(self.known):
            return None
        known = self.known.to_numpy()
        span = int(known.max()) - int(known.min()) + 1
        if span > DENSE_RATIO * len(known):
            return None
        lowest = known.min().astype(np.uint64)
        places = np.full(span + 1, -1, np.int32)
        places[known.astype(np.uint64) - lowest] = np.arange(len(known))
        return lowest, places

    @cached_property
    def _sorted(self) -> tuple[pa.Array, pa.Array]:
        """The known values in ascending order, and their places."""
        places = pc.sort_indices(self.known)
        return self.known.take(places), places.cast(pa.int32())


def _search(known: pa.Array, values: pa.Array) -> np.ndarray:
    """Returns how many of the ascending ``known`` are below each value, int64 [n]; any number for
    missing ones.
    """
    if pa.types.is_integer(known.type):
        return np.searchsorted(known.to_numpy(), values.fill_null(0).to_numpy())
    values = values.fill_null("")
    found = np.zeros(len(values), np.int64)
    for bit in reversed(range(len(known).bit_length())):
        more = found + (1 << bit)
        last = pa.array(np.minimum(more, len(known)) - 1)
        is_below = pc.less(known.take(last), values).to_numpy(zero_copy_only=False)
        found = np.where(is_below & (more <= len(known)), more, found)
    return found
