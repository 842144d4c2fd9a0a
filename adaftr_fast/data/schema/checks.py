"""Checks on the content of a schema file. Every error names the key, the expected value and the value found."""

from __future__ import annotations

import datetime
from typing import Any

from adaftr_fast.data.schema.types import Condition
from adaftr_fast.errors import DataError

SCALARS = (bool, int, float, str, datetime.date, datetime.time)  # datetime.datetime is a subclass of date
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")


def condition(where: str, value: Any) -> Condition:
    """Parses a condition: a list of [column, op, value], or a list of such lists."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        return [_conjunction(where, alternative) for alternative in value]
    return _conjunction(where, value)


def _conjunction(where: str, value: Any) -> list[tuple[str, str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: expected a list of ["column", "op", value], got {value!r}')
    for triple in value:
        if not isinstance(triple, list) or len(triple) != 3 or not isinstance(triple[0], str):
            raise DataError(f'{where}: expected ["column", "op", value], got {triple!r}')
        _check_comparison(where, *triple)
    return [(column, op, operand) for column, op, operand in value]


def _check_comparison(where: str, column: str, operator: Any, operand: Any) -> None:
    if operator not in OPERATORS:
        raise DataError(f"{where}: {column}: expected one of the operators {', '.join(OPERATORS)}, got {operator!r}")
    takes_list = operator in ("in", "not in")
    values = operand if takes_list and isinstance(operand, list) else [operand]
    if takes_list != isinstance(operand, list) or not all(isinstance(value, SCALARS) for value in values):
        expected = "a list of values" if takes_list else "one value"
        raise DataError(f"{where}: {column} {operator}: expected {expected}, got {operand!r}")
    for value in values:
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise DataError(f"{where}: {column} {operator}: expected an integer of 64 bits, got {value}")


def text(where: str, value: Any) -> str:
    """Returns ``value`` if it is a string."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {value!r}")
    return value


def number(where: str, value: Any) -> float:
    """Returns ``value`` as a float if it is an int or a float, not a bool."""
    if type(value) not in (int, float):
        raise DataError(f"{where}: expected a number, got {value!r}")
    return float(value)


def table(where: str, value: Any) -> dict[str, Any]:
    """Returns ``value`` if it is a TOML table."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, got {value!r}")
    return value


def strings(where: str, value: Any) -> tuple[str, ...]:
    """Returns ``value`` as a tuple if it is a non-empty list of strings."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: expected a list of names, got {value!r}")
    return tuple(value)


def check_keys(where: str, value: Any, *, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    """Raises DataError unless ``value`` is a table with all ``required`` keys and no keys outside ``allowed``."""
    for key in table(where, value):
        if key not in allowed:
            raise DataError(f"{where}: unknown key {key!r}; expected one of {', '.join(allowed)}")
    for key in required:
        if key not in value:
            raise DataError(f"{where}: missing key {key!r}")
