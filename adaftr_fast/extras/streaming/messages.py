"""Reads the messages of a topic as rows, and tells why one of them is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from adaftr_fast.data.arrow import column_of
from adaftr_fast.data.encode.typed import as_written, read_column
from adaftr_fast.data.encode.written import castable, label_numbers
from adaftr_fast.data.raw.batches import one_batch
from adaftr_fast.data.raw.source import label_expression
from adaftr_fast.data.schema.columns import column_types, read_types
from adaftr_fast.data.schema.types import Label, Schema, TextFormat, condition_columns
from adaftr_fast.files.whole import is_unicode

SHOWN = 50  # characters of a value that an error shows
LARGEST_WEIGHT = float(np.finfo(np.float32).max)  # weights are float32
# NaN is missing, as null is
CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
Row = dict[str, Any]
Read = Callable[[Any], Any]


class RowReader:
    """Reads JSON objects as rows with the columns of a schema, so that ``prepare`` can read any set
    of these rows.

    Args:
        schema: the schema of a part of the stream (``part_schema``).
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._reads = _readers(schema)
        needed = {schema.weight, *(label.column for label in schema.labels)}
        self._needed = [name for name in self._reads if name in needed]

    def read(self, messages: Sequence[bytes | None]) -> tuple[pa.Table, list[str | None]]:
        """Returns the rows, and for each message why it is none, or None.

        The table has the columns that any row has. A column of several types becomes text. A
        message is not a row if it is not a JSON object, has no column of the schema, lacks a label
        or the weight, or has a value that the schema cannot read.
        """
        rows: list[Row] = []
        reasons: list[str | None] = []
        for message in messages:
            try:
                rows.append(self._row(message))
                reasons.append(None)
            except ValueError as error:
                reasons.append(str(error))
            except RecursionError:
                reasons.append("is nested too deeply")
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: column_of([row.get(name) for row in rows]) for name in names}
        return self._labelled(pa.table(columns), reasons)

    def _row(self, message: bytes | None) -> Row:
        try:
            found = None if message is None else json.loads(message, parse_constant=CONSTANTS.get)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        row = {}
        for name, (expected, read) in self._reads.items():
            if (value := found.get(name)) is not None and value not in self._schema.text.null:
                try:
                    row[name] = read(value)
                except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
                    shown = ascii(value)
                    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."
                    raise ValueError(f"{name}: expected {expected}, got {shown}") from error
        if missing := [name for name in self._needed if name not in row]:
            raise ValueError(f"{missing[0]}: is missing")
        if not row:
            raise ValueError("expected a column of the schema")
        return row

    def _labelled(
        self, rows: pa.Table, reasons: list[str | None]
    ) -> tuple[pa.Table, list[str | None]]:
        """Leaves out the rows in which an expression fails, or a label has no value since a column
        is missing.
        """
        if not rows.num_rows:
            return rows, reasons
        numbers = np.flatnonzero([reason is None for reason in reasons])
        batch = one_batch([rows])
        compute = partial(as_written, self._schema)
        fits = castable(batch, compute)
        for number in numbers[~fits]:
            reasons[number] = "an expression of the schema has no value"
        numbers, rows = numbers[fits], rows.filter(fits)
        batch = compute(batch.filter(fits))
        is_row = np.full(len(rows), True)
        present = set(batch.schema.names)
        conditions = _conditions(self._schema)
        read = {
            label.name: label_expression(label).is_null()
            for label in conditions
            if present.issuperset(label.columns())
        }
        found = ds.dataset(pa.Table.from_batches([batch])).to_table(columns=read)
        for label in reversed(conditions):  # so that the first one is the reason
            name = label.name
            is_missing = found[name].to_numpy() if name in read else np.full(len(rows), True)
            for number in numbers[is_missing]:
                reasons[number] = f"label {name}: is missing"
            is_row &= ~is_missing
        return rows.filter(is_row), reasons


def _conditions(schema: Schema) -> list[Label]:
    """Returns the labels that are computed from columns of a row."""
    return [each for each in schema.labels if each.column in {None, *schema.expressions}]


def _readers(schema: Schema) -> dict[str, tuple[str, Read]]:
    """Returns how each column is read, after what is expected of its values."""
    form = schema.text
    types = column_types(schema)
    typed = read_types(schema)
    compared = {*condition_columns(schema.drop or [])}
    compared.update(*(label.columns() for label in _conditions(schema)))
    reads: dict[str, tuple[str, Read]] = {}
    for name, kind in types.items():
        if pa.types.is_string(kind):
            reads[name] = "valid Unicode text", _compared if name in compared else _plain
        elif name in typed:
            reads[name] = f"a value of type {kind}", partial(_typed, kind, form)
        else:
            read = partial(_number, form) if kind == pa.float64() else partial(_cast, kind)
            reads[name] = f"a value of type {kind}", read
    for field in schema.fields:
        if field.tokens is not None and field.separator is None:
            reads[field.columns[0]] = "a list of valid Unicode text", _list
    for label in schema.labels:
        if label.column in types:
            reads[label.column] = "0 or 1", _label
    if schema.weight in types:
        reads[schema.weight] = "a finite number >= 0", partial(_weight, form)
    return reads


def _plain(value: Any) -> Any:
    """Returns the JSON text of an object or a list, and any other value itself."""
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError
    return json.dumps(value) if isinstance(value, dict | list) else value


def _compared(value: Any) -> str:
    """Returns a value as the text that a condition compares with another one."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError
    return [_plain(value) for value in values]


def _typed(kind: pa.DataType, form: TextFormat, value: Any) -> Any:
    return read_column("", column_of([value]), kind, form)[0].as_py()


def _number(form: TextFormat, value: Any) -> Any:
    """Returns a number, or one that is written as text with the marks of a schema."""
    # a cast takes no integer beyond 2^53
    return float(value) if isinstance(value, int | float) else _typed(pa.float64(), form, value)


def _label(value: Any) -> int:
    return int(label_numbers(pa.array([value]))[0].as_py())  # None is neither 0 nor 1


def _weight(form: TextFormat, value: Any) -> Any:
    number = _number(form, value)
    if not 0 <= number <= LARGEST_WEIGHT:
        raise ValueError
    return number


def _cast(kind: pa.DataType, value: Any) -> Any:
    return pa.scalar(value).cast(kind).as_py()
