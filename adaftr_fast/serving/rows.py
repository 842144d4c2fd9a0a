"""Rows of a request: dicts or a table, as columns that encoders read. Shapes: n rows."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import LISTS, column_of, is_missing, one_array
from adaftr_fast.data.encode.written import read_numbers
from adaftr_fast.data.raw.tables import ArrowStream, read_table
from adaftr_fast.data.schema.columns import EXACT_INTEGERS, column_types
from adaftr_fast.data.schema.types import Schema, TextFormat
from adaftr_fast.errors import ConfigError, DataError

Row = Mapping[str, Any]
RawRows = Row | Sequence[Row] | ArrowStream
Extra = Literal["error", "ignore"]
WHOLE = ""  # in place of a separator, where a field reads a value as a whole


def read_rows(
    schema: Schema, prices: Sequence[str], rows: RawRows, extra: Extra, *, exact: bool = False
) -> pa.RecordBatch:
    """Returns the columns that fields read and those of ``prices``, [n] each.

    Args:
        schema: the schema of the model.
        prices: further columns to read.
        rows: a dict for one row, a list of dicts, or a table.
        extra: what to do with a column that is neither one of these nor of the schema: "error" or
            "ignore".
        exact: whether a float for an id that may have lost digits is an error. By default it is a
            warning, as in training: a table may have nothing else.

    Raises:
        ConfigError: ``extra`` is neither.
        DataError: a column is missing or unknown, a dict holds a list where the schema reads one
            value or the reverse, a table has values that Arrow cannot represent, or an id is not
            ``exact``.
        TypeError: ``rows`` is none of the above.
    """
    if extra not in get_args(Extra):
        raise ConfigError(f"extra: expected {' or '.join(get_args(Extra))}, got {extra!r}")
    names = needed_columns(schema, prices)
    known = {*names, *schema.columns(), *schema.ignore} if extra == "error" else None
    if isinstance(rows, ArrowStream):
        table = read_table(rows)
        _check_names("rows", table.column_names, names, known)
        batch = pa.record_batch({name: one_array(table[name]) for name in names})
        for name in _id_columns(schema):
            _check_digits(name, [("rows", _large_floats(batch[name]))], exact)
        return batch
    listed = _listed(rows)
    for where, row in listed.items():
        _check_names(where, row, names, known)
    types = column_types(schema) | dict.fromkeys(prices, pa.float64())
    separators = _separators(schema)
    null = schema.text.null
    columns = {
        name: _values(listed, name, null, name in separators, separators.get(name))
        for name in names
    }
    for name in _id_columns(schema):
        _check_digits(name, zip(listed, columns[name]), exact)
    return pa.record_batch(
        {
            name: _column(name, each, types[name] == pa.float64(), schema.text)
            for name, each in columns.items()
        }
    )


def _separators(schema: Schema) -> dict[str, str | None]:
    """Returns the columns that may hold lists, with the separator of text beside them, or None.

    A list is divided already. It cannot stand for text that a field reads as a whole, nor for text
    that fields divide by several separators.
    """
    marks = defaultdict(set)
    for field in schema.features:
        for column in field.columns:
            marks[column].add(WHOLE if field.tokens is None else field.separator)
    for each in schema.expressions.values():
        for column in each.columns:
            marks[column].add(WHOLE)
    return {
        name: None if None in each else each.pop()
        for name, each in marks.items()
        if WHOLE not in each and (len(each) == 1 or None in each)
    }


def _id_columns(schema: Schema) -> list[str]:
    """Returns the columns whose values are ids, tokens among them, to some field."""
    return sorted(
        {column for field in schema.fields if field.kind != "numeric" for column in field.columns}
        - schema.expressions.keys()
    )


def _check_digits(name: str, values: Iterable[tuple[str, object]], exact: bool) -> None:
    """Warns of the first float for an id from 2^53 on, where it may have been another integer.

    Args:
        values: values of the column ``name``, or lists of them, each with the name of its row in
            messages.
        exact: whether to raise DataError instead.
    """
    for where, value in values:
        for each in value if isinstance(value, LISTS) else (value,):
            if (
                isinstance(each, float | np.floating)
                and EXACT_INTEGERS <= abs(float(each)) < math.inf
            ):
                cure = "pass ids from 2^53 on as integers or text"
                problem = (
                    f"{where}: column {name!r}: the float {each} may have lost digits of an id; "
                    f"{cure}"
                )
                if exact:
                    raise DataError(problem)
                return warnings.warn(problem, stacklevel=4)


def _large_floats(values: pa.Array) -> np.ndarray:
    """Returns the floats from 2^53 on of a column [n], or of its lists, as float64."""
    values = values.flatten() if pa.types.is_list(values.type) else values
    if not pa.types.is_floating(values.type):
        return np.empty(0)
    values = values.cast(pa.float64())
    return values.filter(pc.greater_equal(pc.abs(values), EXACT_INTEGERS)).to_numpy()


def needed_columns(schema: Schema, prices: Sequence[str]) -> list[str]:
    """Returns the columns that a row needs: those that fields read, and those of ``prices``."""
    return list(dict.fromkeys([*schema.field_columns(), *prices]))


def _listed(rows: Row | Sequence[Row]) -> dict[str, Row]:
    """Returns rows by their names in messages."""
    if isinstance(rows, Mapping):
        return {"row": rows}
    is_sequence = isinstance(rows, Sequence) and not isinstance(rows, str | bytes)
    if not is_sequence or not all(isinstance(row, Mapping) for row in rows):
        expected = (
            "a dict, a list of dicts, or a table with __arrow_c_stream__ (pandas 2.2, Polars 1 or "
            "PyArrow)"
        )
        raise TypeError(f"rows: expected {expected}, got {_kind(rows)}")
    return {f"rows[{number}]": row for number, row in enumerate(rows)}


def _kind(rows: object) -> str:
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        wrong = next(row for row in rows if not isinstance(row, Mapping))
        return f"a {type(rows).__name__} with {type(wrong).__name__}"
    return type(rows).__name__


def _check_names(
    where: str, found: Iterable[str], names: Sequence[str], known: set[str] | None
) -> None:
    """Raises DataError if a column is missing, or not among ``known``; None allows any."""
    found = dict.fromkeys(found)
    if missing := [name for name in names if name not in found]:
        got = _quoted(found) or "no columns"
        raise DataError(f"{where}: no column {_quoted(missing)}, which the model reads; got {got}")
    if known is not None and (unknown := [name for name in found if name not in known]):
        raise DataError(
            f"{where}: column {_quoted(unknown)} is not in the schema of the model, which reads "
            f"{_quoted(names)}; "
            'leave it out, or have such columns ignored: score(..., extra="ignore") in Python, '
            "--extra ignore of serve"
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _values(
    listed: Mapping[str, Row], name: str, null: Sequence[str], is_list: bool, separator: str | None
) -> list[Any]:
    """Returns the values of a column, None where they are missing, as the words ``null`` are.

    Text of tokens beside lists becomes a list.

    Raises:
        DataError: a value is a list and should not, or should.
    """
    values = [row[name] for row in listed.values()]
    values = [
        None if is_missing(value) or (isinstance(value, str) and value in null) else value
        for value in values
    ]
    for where, value in zip(listed, values):
        if value is None or (isinstance(value, str) and separator):
            continue
        if isinstance(value, (*LISTS, dict)) != is_list or isinstance(value, dict):
            text = f", or text whose tokens {separator!r} separates" if separator else ""
            expected = f"a list{text}" if is_list else "one value (a dict is one row)"
            raise DataError(
                f"{where}: column {name!r}: expected {expected}, got {type(value).__name__}"
            )
    if separator and not all(value is None or isinstance(value, str) for value in values):
        return [_tokens(value, separator) if isinstance(value, str) else value for value in values]
    return values


def _tokens(text: str, separator: str) -> list[str]:
    return text.split(separator) if text else []


def _column(name: str, values: list[Any], is_number: bool, form: TextFormat) -> pa.Array:
    """Returns values as a column. Those of several types become text, or numbers if the column
    holds numbers.
    """
    try:
        return _read_column(values, is_number, form)
    except pa.ArrowInvalid as error:
        raise DataError(f"rows: column {name!r}: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        expected = "numbers" if is_number else "values of one kind"
        raise DataError(f"rows: column {name!r}: expected {expected}: {error}") from error


def _read_column(values: list[Any], is_number: bool, form: TextFormat) -> pa.Array:
    array = column_of(values)
    if not (is_number and pa.types.is_string(array.type)):
        return array
    plain = [None if value is None or isinstance(value, str) else float(value) for value in values]
    texts = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
    return pc.coalesce(pa.array(plain, pa.float64()), read_numbers(texts, form))
