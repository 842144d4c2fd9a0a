"""Reads the messages of a topic as rows, and tells why one of them is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.data.encode.typed import as_written, read_column
from adaftr_fast.data.encode.written import castable, label_numbers, plain_numbers
from adaftr_fast.data.raw.batches import one_batch
from adaftr_fast.data.schema.columns import column_types, read_types
from adaftr_fast.data.schema.types import Label, Schema, TextFormat, condition_columns
from adaftr_fast.files.whole import is_unicode

SHOWN = 50  # characters of a value that an error shows
LARGEST_WEIGHT = float(np.finfo(np.float32).max)  # weights are float32
# NaN is missing, as null is
CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
Row = dict[str, Any]


class RowReader:
    """Reads JSON objects as rows with the columns of a schema, so that ``prepare`` can read any set
    of these rows.

    Args:
        schema: the schema of a part of the stream (``part_schema``).
    """

    def __init__(self, schema: Schema) -> None:
        conditions = {
            label.name: (label.columns(), _value(label).is_null())
            for label in schema.labels
            if label.column is None or label.column in schema.expressions
        }
        compared = {*condition_columns(schema.drop or [])}
        compared.update(*(columns for columns, _ in conditions.values()))
        self._compute = partial(as_written, schema) if schema.expressions else lambda rows: rows
        self._null = schema.text.null
        self._types = column_types(schema)
        self._reads: dict[str, Callable[[Any], Any]] = {
            name: _reader(kind, schema.text) for name, kind in self._types.items()
        }
        typed = read_types(schema)
        self._reads |= {
            name: partial(_read, kind, schema.text)
            for name, kind in typed.items()
            if kind != pa.string()
        }
        self._reads |= {
            name: _compared for name in compared if self._types.get(name) == pa.string()
        }
        self._reads |= {
            field.columns[0]: _list
            for field in schema.fields
            if field.tokens is not None and field.separator is None
        }
        read = {label.column: _label for label in schema.labels if label.column is not None}
        read |= {schema.weight: _weight} if schema.weight is not None else {}
        self._reads |= {name: each for name, each in read.items() if name not in schema.expressions}
        self._needed = [name for name, read in self._reads.items() if read in (_label, _weight)]
        self._conditions = conditions

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
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        return self._labelled(pa.table(columns), reasons)

    def _row(self, message: bytes | None) -> Row:
        try:
            found = None if message is None else json.loads(message, parse_constant=CONSTANTS.get)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        row = {}
        for name, read in self._reads.items():
            if (value := found.get(name)) is not None and value not in self._null:
                try:
                    row[name] = read(value)
                except (ValueError, OverflowError) as error:
                    shown = ascii(value)
                    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."
                    raise ValueError(f"{name}: {error}, got {shown}") from error
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
        fits = castable(batch, self._compute)
        for number in numbers[~fits]:
            reasons[number] = "an expression of the schema has no value"
        numbers, rows = numbers[fits], rows.filter(fits)
        batch = self._compute(batch.filter(fits))
        is_row = np.full(len(rows), True)
        present = set(batch.schema.names)
        read = {
            name: is_missing
            for name, (columns, is_missing) in self._conditions.items()
            if present.issuperset(columns)
        }
        found = ds.dataset(pa.Table.from_batches([batch])).to_table(columns=read)
        for name in reversed(self._conditions):  # so that the first one is the reason
            is_missing = found[name].to_numpy() if name in read else np.full(len(rows), True)
            for number in numbers[is_missing]:
                reasons[number] = f"label {name}: is missing"
            is_row &= ~is_missing
        return rows.filter(is_row), reasons


def _value(label: Label) -> pc.Expression:
    if label.column is not None:
        return pc.field(label.column)
    return pq.filters_to_expression(label.condition)


def _read(kind: pa.DataType, form: TextFormat, value: Any) -> Any:
    """Returns a value of a column that an expression reads."""
    try:
        return read_column("", pa.array([value]), kind, form)[0].as_py()
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"expected a value of type {kind}") from error


def _reader(kind: pa.DataType, form: TextFormat) -> Callable[[Any], Any]:
    if pa.types.is_string(kind):
        return _plain
    return partial(_written_number, form) if kind == pa.float64() else partial(_cast, kind)


def _plain(value: Any) -> Any:
    """Returns the JSON text of an object or a list, and any other value itself."""
    if isinstance(value, str):
        if not is_unicode(value):
            raise ValueError("expected valid Unicode text")
        return value
    return json.dumps(value) if isinstance(value, dict | list) else value


def _compared(value: Any) -> str:
    """Returns a value as the text that a condition compares with another one."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError("expected a list")
    return [_plain(value) for value in values]


def _number(value: Any) -> Any:
    # a cast takes no integer beyond 2^53; float raises OverflowError
    return float(value) if isinstance(value, int | float) else _cast(pa.float64(), value)


def _written_number(form: TextFormat, value: Any) -> Any:
    """Returns a number, or one that is written as text with the marks of a schema."""
    return _number(
        plain_numbers(pa.array([value]), form)[0].as_py() if isinstance(value, str) else value
    )


def _label(value: Any) -> int:
    number = (
        label_numbers(pa.array([value]))[0].as_py() if isinstance(value, str) else _number(value)
    )
    if number not in (0, 1):
        raise ValueError("expected 0 or 1")
    return int(number)  # 0 of -0.0


def _weight(value: Any) -> Any:
    number = _number(value)
    if not 0 <= number <= LARGEST_WEIGHT:
        raise ValueError("expected a finite number >= 0")
    return number


def _cast(kind: pa.DataType, value: Any) -> Any:
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"expected a value of type {kind}") from error


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # several types
        return pa.array([None if value is None else _text(value) for value in values])


def _text(value: Any) -> Any:
    """Returns a value as text, and a list as one of texts."""
    if isinstance(value, list):
        return [each if each is None else _text(each) for each in value]
    return value if isinstance(value, str) else json.dumps(value)
