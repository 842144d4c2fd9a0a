"""Reads columns as the schema says: as a type, whatever type carries the values, and computes those
that are expressions.

Preparation, scoring and streams read rows through this module. Shapes: n values.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.canonical import WORDS, as_float64, canonical_text, without_nan
from adaftr_fast.data.encode.written import (
    all_read,
    cast,
    holds_text,
    label_numbers,
    plain_numbers,
    read_numbers,
    read_times,
    times,
    without_empty,
    without_words,
)
from adaftr_fast.data.schema.columns import TYPES, column_types, read_types
from adaftr_fast.data.schema.sql import evaluate
from adaftr_fast.data.schema.types import PLAIN_TEXT, Schema, TextFormat

NAMES = {kind: name for name, kind in TYPES.items()}
ZONE = r"[T ].*(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)$"  # how a time with a zone ends
DIGITS = r"^\+?(-?[0-9]+)(?:\.0*)?$"  # an integer, also as programs write floats
UTC = pa.timestamp("us", "UTC")


def rewrites(schema: Schema) -> bool:
    """Returns whether ``as_written`` changes any text or computes a column."""
    form = schema.text
    marks = form.null or form.thousands or form.decimal != "." or form.dates
    return bool(marks or schema.expressions)


def as_written(schema: Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns rows whose columns of text have null for words that mean missing, and whose numbers
    are no text.

    Nor are the times that conditions compare. Columns that expressions read have their types, and
    the columns follow that are computed of those that are there. Rows that were read so already
    stay as they are.

    Raises:
        pa.ArrowInvalid: text is no number or no time, or an expression has no value.
    """
    form = schema.text
    if not rewrites(schema):
        return rows
    read = read_types(schema)
    numbers = {*schema.numbers()}
    temporal = {
        name: kind for name, kind in column_types(schema).items() if pa.types.is_temporal(kind)
    }
    for place, field in enumerate(rows.schema):
        if field.name in read:
            values = read_column(field.name, rows.column(place), read[field.name], form)
            rows = rows.set_column(place, field.name, values)
        elif holds_text(field.type):
            values = without_words(rows.column(place), form)
            if field.name in numbers:
                try:
                    values = read_numbers(values, form)
                except pa.ArrowInvalid as error:
                    raise pa.ArrowInvalid(f"{field.name}: {error}") from error
            elif field.name in temporal and form.dates:
                values = read_times(field.name, values, form, temporal[field.name])
            rows = rows.set_column(place, field.name, values)
    present = {*rows.schema.names}
    computed = {
        name: each for name, each in schema.expressions.items() if present.issuperset(each.columns)
    }
    for name, values in evaluate(computed, rows).items():
        if name in present:  # a column of the log that nothing reads, or the same values
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        else:
            rows = rows.append_column(name, values)
    return rows


def read_column(name: str, values: pa.Array, kind: pa.DataType, form: TextFormat) -> pa.Array:
    """Returns a column [n] as a type. Raises pa.ArrowInvalid, with the first value that is none of
    it.
    """
    try:
        values = present(values, form)
    except pa.ArrowInvalid as error:  # bytes that are not UTF-8
        raise pa.ArrowInvalid(f"{name}: {error}") from error
    read = read_as(values, kind, form)
    all_read(values, read, f"{name}: expected type {NAMES[kind]}, got")
    return without_nan(read) if pa.types.is_floating(kind) else read


def present(values: pa.Array, form: TextFormat) -> pa.Array:
    """Returns values [n] with null for those that are missing: words, empty text and NaN."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        values = values.cast(pa.string())
    if holds_text(values.type):
        values = without_words(values, form)
        return pc.if_else(pc.equal(values, ""), None, values)
    return without_nan(values) if pa.types.is_floating(values.type) else values


def read_as(values: pa.Array, kind: pa.DataType, form: TextFormat = PLAIN_TEXT) -> pa.Array:
    """Returns ``present`` values [n] as one of ``TYPES``, null where a value is none of it.

    A value is the same whatever type carries it: the text 1000.0 is an integer, and so is the
    float; true is neither as text nor as a boolean. Times are in UTC, as those without a zone are taken to be.
    """
    types = pa.types
    is_text = holds_text(values.type)
    if types.is_timestamp(kind) and not is_text:
        fits = types.is_timestamp(values.type) or types.is_date(values.type)
    else:
        fits = not (types.is_nested(values.type) or types.is_temporal(values.type))
    if not fits or types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if types.is_timestamp(kind):
        if is_text:
            return _times(values, kind, form)
        return cast(values, kind, allow_time_truncate=True)
    if types.is_string(kind):
        return canonical_text(values)
    if types.is_boolean(kind):
        return label_numbers(values).cast(kind)
    if types.is_boolean(values.type):
        return pa.nulls(len(values), kind)
    if is_text:
        values = plain_numbers(values, form)
        values = pc.if_else(pc.is_in(values, value_set=WORDS), None, values)
    if types.is_integer(kind):
        return _integers(values, kind) if is_text else cast(canonical_text(values), kind)
    return cast(values, kind) if is_text else as_float64(values)


def _times(values: pa.Array, kind: pa.DataType, form: TextFormat) -> pa.Array:
    """Returns text [n] as times, null where it is none."""
    if form.dates:
        return times(values, form, kind)
    values = without_empty(values)
    has_zone = pc.match_substring_regex(values, ZONE)
    zoned = cast(pc.if_else(has_zone, values, None), UTC).cast(kind)
    return pc.coalesce(zoned, cast(pc.if_else(has_zone, None, values), kind))


def _integers(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns numbers that are written as text [n] as integers, null where they are not whole."""
    digits = pc.replace_substring_regex(values, DIGITS, r"\1")
    is_plain = pc.match_substring_regex(digits, r"^-?[0-9]+$")
    floats = cast(pc.if_else(is_plain, None, values), pa.float64())  # such as 1e3
    plain = cast(pc.if_else(is_plain, digits, None), kind)
    return pc.coalesce(plain, cast(canonical_text(floats), kind))
