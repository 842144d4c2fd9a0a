"""Reads the messages of a topic as rows, and tells why one of them is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from adaftr_fast._files import is_unicode
from adaftr_fast.data.raw.inputs import column_types
from adaftr_fast.data.schema.types import Schema

SHOWN = 50  # characters of a value that an error shows
NUMBERS = (pa.float64(), pa.int64())
Row = dict[str, Any]


class RowReader:
    """Reads JSON objects as rows with the columns of a schema, so that ``prepare`` can read any set of these rows.

    Args:
        schema: the schema of a part of the stream (``part_schema``).
    """

    def __init__(self, schema: Schema) -> None:
        self._types = column_types(schema)
        self._reads: dict[str, Callable[[Any], Any]] = {name: _reader(kind) for name, kind in self._types.items()}
        lists = [field for field in schema.fields if field.tokens is not None and field.separator is None]
        self._reads |= {field.columns[0]: _list for field in lists}
        self._reads |= {label.column: _label for label in schema.labels if label.column is not None}
        self._reads |= {schema.weight: _weight} if schema.weight is not None else {}
        self._needed = [name for name, read in self._reads.items() if read in (_label, _weight)]

    def row(self, message: bytes | None) -> Row:
        """Returns the values of a message by column. Other columns are left out.

            Raises:
        X"""
        try:
            found = None if message is None else json.loads(message)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        row = {name: value for name in self._reads if (value := found.get(name)) is not None}
        if missing := [name for name in self._needed if name not in row]:
            raise ValueError(f"{missing[0]}: is missing")
        if not row:
            raise ValueError("expected a column of the schema")
        return {name: self._read(name, value) for name, value in row.items()}

    def _read(self, name: str, value: Any) -> Any:
        try:
            return self._reads[name](value)
        except (ValueError, OverflowError) as error:
            shown = ascii(value)
            raise ValueError(f"{name}: {error}, got {shown[:SHOWN]}{' ...' if len(shown) > SHOWN else ''}") from error

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Returns rows as a table of the columns that any of them has. A column of several types becomes text."""
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: _column([row.get(name) for row in rows], self._types[name]) for name in names})


def _reader(kind: pa.DataType) -> Callable[[Any], Any]:
    if kind in NUMBERS:
        return _number
    return _plain if pa.types.is_string(kind) else partial(_cast, kind)


def _plain(value: Any) -> Any:
    """Returns the JSON text of an object or a list, and any other value itself."""
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError("expected valid Unicode text")
    return value


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError("expected a list")
    return [_plain(value) for value in values]


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        return _cast(pa.float64(), value)
    float(value)  # raises OverflowError
    return value


def _label(value: Any) -> Any:
    if (number := _number(value)) not in (0, 1):
        raise ValueError("expected 0 or 1")
    return number


def _weight(value: Any) -> Any:
    number = _number(value)
    if not 0 <= number < math.inf:
        raise ValueError("expected a finite number >= 0")
    return number


def _cast(kind: pa.DataType, value: Any) -> Any:
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"expected a value of type {kind}") from error


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # several types
        as_one = float if kind in NUMBERS else _text
        return pa.array([None if value is None else as_one(value) for value in values])


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [each if each is None else _text(each) for each in value]
    return value if isinstance(value, str) else json.dumps(value)
