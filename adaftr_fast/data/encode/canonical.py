"""The canonical form of values: one value is the same, whatever type carries it and whatever
program wrote it.

Training, scoring, splits by hash and groups read values through this module. Shapes: n values.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.written import holds_text, without_empty

TRUE = ("true", "True", "TRUE")
FALSE = ("false", "False", "FALSE")
WORDS = pa.array([*TRUE, *FALSE])  # how programs write booleans as text
WORD_VALUES = pa.array(["1"] * len(TRUE) + ["0"] * len(FALSE))
# "1000.0", as programs write integers that are floats or decimals
WHOLE = r"^(?:-?(0)|(-?[1-9][0-9]*))\.0+$"
# "2.0000000004e+10" or "2e-07", as programs write floats
POWER = r"^-?[1-9](\.[0-9]+)?e(\+[1-9]|-[0-9])[0-9]$"
INT64_END = 2.0**63


def canonical_values(values: pa.Array) -> pa.Array:
    """Returns discrete values [n] in their canonical form: int64 if all are integers that fit, else
    text.

    - A number has one form in every type. Floats and decimals that are whole are integers. Other
      floats are their shortest text; other decimals are that of the nearest float64.
    - Text that programs write for a float is that float: "1000.0", "2.0000000004e+10" and "2e-07",
      but neither "007" nor "1e5".
    - Booleans, and the texts true, True and TRUE, false, False and FALSE, are 1 and 0.
    - NaN and empty text are missing.

    Raises:
        pa.ArrowException: the values are lists or structs, or bytes that are not UTF-8.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_decimal(values.type):
        return _canonical_decimals(values)
    if pa.types.is_floating(values.type):
        return _canonical_floats(without_nan(values))
    if pa.types.is_boolean(values.type) or pa.types.is_integer(values.type):
        with suppress(pa.ArrowInvalid):  # an integer beyond int64, such as a hash
            return values.cast(pa.int64())
    return _canonical_text(values.cast(pa.string()))


def canonical_text(values: pa.Array) -> pa.Array:
    """Returns ``canonical_values`` as text [n], where batches of a column must have one type."""
    return canonical_values(values).cast(pa.string())


def as_float64(values: pa.Array) -> pa.Array:
    """Casts values [n] to float64, each to the nearest. Empty text becomes null.

    Raises:
        pa.ArrowException: a value is not a number.
    """
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())  # Arrow's cast from decimals rounds twice
    elif holds_text(values.type):
        values = without_empty(values)
    return values.cast(pa.float64(), safe=False)


def without_nan(values: pa.Array) -> pa.Array:
    """Returns floats [n] with null in place of NaN."""
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _canonical_floats(values: pa.Array) -> pa.Array:
    with suppress(pa.ArrowInvalid):  # one is not whole, or beyond int64
        return values.cast(pa.int64())
    wide = values.cast(pa.float64())
    is_whole = pc.and_(pc.equal(pc.trunc(wide), wide), pc.less(pc.abs(wide), INT64_END))
    whole = pc.if_else(is_whole, wide, None).cast(pa.int64())
    return pc.coalesce(whole.cast(pa.string()), values.cast(pa.string()))


def _canonical_decimals(values: pa.Array) -> pa.Array:
    with suppress(pa.ArrowInvalid):  # one is not whole, or beyond int64
        return values.cast(pa.int64())
    text = values.cast(pa.string())
    is_whole = pc.match_substring_regex(text, r"^-?[0-9]+(\.0*)?$")
    fractions = pc.if_else(is_whole, None, text).cast(pa.float64())
    return pc.coalesce(
        _canonical_floats(fractions).cast(pa.string()),
        pc.replace_substring_regex(text, r"\.0*$", ""),
    )


def _canonical_text(text: pa.Array) -> pa.Array:
    differs = _may_differ(text)
    if not differs.any():
        return text
    found = text.filter(differs)
    powers = pc.if_else(pc.match_substring_regex(found, POWER), found, None).cast(pa.float64())
    words = WORD_VALUES.take(pc.index_in(found, value_set=WORDS))
    plain = pc.replace_substring_regex(found, WHOLE, r"\1\2")
    plain = pc.if_else(pc.equal(plain, ""), None, plain)
    canonical = pc.coalesce(words, _canonical_floats(powers).cast(pa.string()), plain)
    return pc.replace_with_mask(text, differs, canonical)


def _may_differ(text: pa.Array) -> np.ndarray:
    """Returns where the length or the last bytes of text [n] allow another canonical form, bool
    [n].

    Nearly all text stays as it is, and regular expressions would take three times as long as
    counting the values.
    """
    _, offsets, data = text.buffers()
    ends = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    lengths = np.diff(ends)
    ends = ends[1:]
    content = np.frombuffer(data or b"\0", np.uint8)
    last, second, third = (content.take(ends - place, mode="wrap") for place in (1, 2, 3))
    whole = (last == ord("0")) & (second == ord("."))
    zeros = np.flatnonzero((last == ord("0")) & (second == ord("0")))  # "1.00", or "100"
    whole[zeros] = pc.match_substring(text.take(zeros), ".").fill_null(False)
    power = (third == ord("+")) | (third == ord("-"))
    word = ((lengths == 4) | (lengths == 5)) & ((last == ord("e")) | (last == ord("E")))
    return (lengths == 0) | whole | word | power
