"""The canonical form of groups (users), by which GAUC groups rows."""

from __future__ import annotations

import pyarrow as pa

from adaftr_fast.data.encode.canonical import canonical_text, canonical_values
from adaftr_fast.errors import DataError


def group_values(name: str, values: pa.Array) -> pa.Array:
    """Returns groups [n] in their canonical form.

    Args:
        name: the column, for errors.

    Raises:
        DataError: the values are neither text nor numbers.
    """
    try:
        always_fits = pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type)
        return canonical_values(values) if always_fits else canonical_text(values)
    except pa.ArrowException as error:
        raise DataError(
            f"group {name}: expected text or numbers, got values of type {values.type}"
        ) from error
