"""Reads values that are written as text: words for a missing value, marks of numbers, words of
labels, forms of times.

Training and scoring read columns of text through this module, from files and from memory. Shapes: n
values.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.schema.types import TextFormat

SHOWN_LABELS = 10  # distinct values of a label, of those that are none, that errors show
NUMBERS = pa.array([0.0, 1.0])
# negative and positive in turn
LABEL_WORDS = pa.array(["0", "1", "false", "true", "f", "t", "no", "yes", "n", "y"])
LABEL_VALUES = pa.array([0.0, 1.0] * (len(LABEL_WORDS) // 2))
LABEL_NUMBER = r"^\+?0*([01])(?:\.0*)?$"  # "1.0", as programs write integers that are floats


def holds_text(kind: pa.DataType) -> bool:
    """Returns whether values of a type are text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def without_words(values: pa.Array, form: TextFormat) -> pa.Array:
    """Returns text [n] as strings, with null for the words that mean missing."""
    values = values.cast(pa.string())
    if not form.null:
        return values
    return pc.if_else(pc.is_in(values, value_set=pa.array(form.null)), None, values)


def without_empty(values: pa.Array) -> pa.Array:
    """Returns text [n] without the spaces around it, and null for empty text."""
    values = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(values, ""), None, values)


def plain_numbers(values: pa.Array, form: TextFormat) -> pa.Array:
    """Returns numbers that are written as text [n] as Arrow casts them, null for empty text.

    Text in another form is no number any more.
    """
    values = without_empty(values)
    thousands = re.escape(form.thousands)
    decimal = re.escape(form.decimal)
    if form.thousands:
        grouped = pc.match_substring_regex(
            values, rf"^[+-]?[0-9]{{1,3}}(?:{thousands}[0-9]{{3}})+(?:{decimal}[0-9]*)?$"
        )
        values = pc.if_else(grouped, pc.replace_substring(values, form.thousands, ""), values)
    if form.decimal != ".":
        # in "1.5", which is no number here, nor is "1 5"
        values = pc.replace_substring(values, ".", " ")
        values = pc.replace_substring(values, form.decimal, ".")
    return values


def read_numbers(values: pa.Array, form: TextFormat) -> pa.Array:
    """Returns text [n] as float64 [n]. Raises pa.ArrowInvalid, with the first value that is no
    number as it is written.
    """
    values = without_words(values, form)
    numbers = plain_numbers(values, form)
    mark = "" if form.decimal == "." else f" with decimals after {form.decimal!r}"
    written = pc.if_else(numbers.is_valid(), values, None)
    return all_read(written, cast(numbers, pa.float64()), f"expected numbers{mark}, got")


def all_read(values: pa.Array, read: pa.Array, problem: str) -> pa.Array:
    """Returns ``read`` [n]. Raises pa.ArrowInvalid with the first of ``values`` [n] that is missing
    there alone.
    """
    lost = pc.and_(values.is_valid(), read.is_null()).index(True).as_py()
    if lost < 0:
        return read
    try:
        got = repr(values[lost].as_py())
    except (OverflowError, ValueError):  # a time that Python has not
        got = f"{values[lost].value} of type {values.type}"
    raise pa.ArrowInvalid(f"{problem} {got}")


def cast(values: pa.Array, kind: pa.DataType, **allowed: bool) -> pa.Array:
    """Casts values [n] to a type, to null where they cannot be cast."""
    options = pc.CastOptions(kind, **allowed)
    try:
        return values.cast(options=options)
    except pa.ArrowException:
        fits = castable(values, lambda part: part.cast(options=options))
        if not fits.any():
            return pa.nulls(len(values), kind)
        return pc.if_else(pa.array(fits), values, None).cast(options=options)


def castable(values: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Returns whether ``cast`` can cast each value, bool [n].

    It reports only that some value cannot be cast, so bisection finds which.
    """
    try:
        cast(values)
    except pa.ArrowException:
        if len(values) == 1:
            return np.zeros(1, bool)
        half = len(values) // 2
        return np.concatenate([castable(values[:half], cast), castable(values[half:], cast)])
    return np.ones(len(values), bool)


def label_numbers(values: pa.Array) -> pa.Array:
    """Returns labels [n] as float64 [n], 0 or 1 for the words of ``LABEL_WORDS`` in any case; else
    null.

    Raises:
        pa.ArrowException: the values are neither numbers, booleans nor text.
    """
    if not holds_text(values.type):
        numbers = values.cast(pa.float64(), safe=False)  # beyond 2 ** 53 is no label
        return pc.if_else(pc.is_in(numbers, value_set=NUMBERS), numbers, None)
    distinct = values.dictionary_encode() if not pa.types.is_dictionary(values.type) else values
    words = pc.utf8_lower(pc.utf8_trim_whitespace(distinct.dictionary.cast(pa.string())))
    words = pc.replace_substring_regex(words, LABEL_NUMBER, r"\1")
    return LABEL_VALUES.take(pc.index_in(words, value_set=LABEL_WORDS)).take(distinct.indices)


def times(values: pa.Array, form: TextFormat, kind: pa.DataType) -> pa.Array:
    """Returns text [n] as times of a type; null where none of the forms fits."""
    read = [pc.strptime(values, each, "us", error_is_null=True) for each in form.dates]
    return pc.coalesce(*read).cast(kind)


def read_times(name: str, values: pa.Array, form: TextFormat, kind: pa.DataType) -> pa.Array:
    """Returns a column of text [n] as times of a type. Raises pa.ArrowInvalid if none of the forms
    fits a value.
    """
    problem = f"{name}: none of the forms of dates, {', '.join(form.dates)}, fits"
    return all_read(values, times(values, form, kind), problem)
