"""The types that columns have, by what a schema reads in them."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.schema.sql import evaluate
from adaftr_fast.data.schema.types import Condition, Schema, condition_columns
from adaftr_fast.errors import DataError

TYPES = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "time": pa.timestamp("us"),  # in UTC
}
VALUES = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_string,
    pa.types.is_date,
    pa.types.is_timestamp,
)
INTEGER = re.compile(r"-?[0-9]+")
EXACT_INTEGERS = 1 << 53  # up to which float64 has all integers


def column_types(schema: Schema) -> dict[str, pa.DataType]:
    """Returns the type of every column that the schema reads from a text file.

    A column is float64 if a numeric or dense field, a 0/1 label, a weight or a truth reads it. A
    column that a condition compares with a number is float64 too, or int64 if the number is an
    integer and a categorical field reads the column, or float64 lacks integers of its size. A column
    that orders shares of time has the type of the times, whatever else it is compared with. Any
    other column has the type of the operand it is compared with, and is text by default. A column
    that an expression reads has the type of ``read_types``.
    """
    types: dict[str, pa.DataType] = dict.fromkeys(schema.columns(), pa.string())
    discrete = {
        column for field in schema.fields if field.kind != "numeric" for column in field.columns
    }
    for column, _, operand in chain.from_iterable(chain.from_iterable(_conditions(schema))):
        value = operand[0] if isinstance(operand, list) else operand
        types[column] = operand_type(value, column in discrete)
    times = [rule.time for rule in schema.split.values() if rule.time]
    types |= {time.column: time.kind for time in times if time.kind}
    labels = [label.column for label in schema.labels if label.column is not None]
    types |= dict.fromkeys([*schema.numbers(), *labels], pa.float64())
    types |= read_types(schema)
    return {column: types[column] for column in schema.columns()}


def read_types(schema: Schema) -> dict[str, pa.DataType]:
    """Returns the types of the columns that expressions read: what the schema says, or else numbers
    where a numeric field reads them too, or else text.
    """
    numbers = {*schema.numbers()}
    return {
        column: TYPES[schema.types.get(column, "number" if column in numbers else "text")]
        for each in schema.expressions.values()
        for column in each.columns
    }


def computed_types(schema: Schema) -> dict[str, pa.DataType]:
    """Returns the types of the columns that the schema computes.

    Raises:
        DataError: an expression does not fit the types of its columns, or has values of a type that
            no column has.
    """
    rows = pa.RecordBatch.from_pylist([], pa.schema(read_types(schema)))
    try:
        found = evaluate(schema.expressions, rows)
    except pa.ArrowInvalid as error:
        hint = "the table types says what else than text the columns of an expression are"
        raise DataError(f'{error}; {hint}, such as {rows.schema.names[0]} = "integer"') from error
    for name, values in found.items():
        if not any(holds(values.type) for holds in VALUES):
            raise DataError(
                f"columns.{name}: expected numbers, text, booleans or times, got values of type "
                f"{values.type}"
            )
    return {name: values.type for name, values in found.items()}


def check_conditions(schema: Schema) -> None:
    """Raises DataError, as ``computed_types``, or if a condition compares a column that an expression
    computes or reads with a value of another type.
    """
    types = read_types(schema) | computed_types(schema)
    rows = pa.table({name: pa.array([], kind) for name, kind in types.items()})
    for column, comparison, operand in chain.from_iterable(
        chain.from_iterable(_conditions(schema))
    ):
        if column in types:
            try:
                rows.filter(pq.filters_to_expression([(column, comparison, operand)]))
            except pa.ArrowException as error:
                raise DataError(
                    f"{column}: expected conditions that compare it with values of its type, "
                    f"{types[column]}, got {comparison} {operand!r}"
                ) from error


def discrete_columns(schema: Schema) -> frozenset[str]:
    """Returns the columns of text that no condition compares and no share of time orders: fields,
    splits and the group read their values in the canonical form.

    There are none where a word for missing values is an integer, which is a value in other files.
    """
    if any(INTEGER.fullmatch(word) for word in schema.text.null):
        return frozenset()
    compared = {column for each in _conditions(schema) for column in condition_columns(each)}
    compared |= {rule.time.column for rule in schema.split.values() if rule.time}
    types = column_types(schema)
    return frozenset(
        name for name, kind in types.items() if pa.types.is_string(kind) and name not in compared
    )


def _conditions(schema: Schema) -> list[Condition]:
    conditions = [each.condition for each in schema.labels]
    conditions += [each.where for each in schema.split.values()]
    return [condition for condition in (*conditions, schema.drop) if condition]


def operand_type(operand: Any, discrete: bool = False) -> pa.DataType:
    """Returns the type of a column that a condition compares with ``operand``, and that may be
    ``discrete`` values.
    """
    kind = pa.scalar(operand).type
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_integer(kind) and not discrete and abs(operand) <= EXACT_INTEGERS:
        return pa.float64()
    return kind
