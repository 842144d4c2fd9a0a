"""Checks of what a schema file holds; every message names the key, what was expected and what came."""

from __future__ import annotations

import datetime
from typing import Any

from adaftr_fast.data.schema.types import Condition
from adaftr_fast.errors import DataError

SCALARS = (bool, int, float, str, datetime.date, datetime.time)  # a datetime is a date
OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in", "not in")


def condition(where: str, value: Any) -> Condition:
    """A condition: a list of [column, op, value], or a list of such lists."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        return [_conjunction(where, part) for part in value]
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
        raise DataError(f"{where}: {column}: expected an operator of {', '.join(OPERATORS)}, got {operator!r}")
    several = operator in ("in", "not in")
    values = operand if several and isinstance(operand, list) else [operand]
    if several != isinstance(operand, list) or not all(isinstance(value, SCALARS) for value in values):
        expected = "a list of values" if several else "one value"
        raise DataError(f"{where}: {column} {operator}: expected {expected}, got {operand!r}")


def text(where: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {value!r}")
    return value


def number(where: str, value: Any) -> float:
    """A number, which a bool is not."""
    if type(value) not in (int, float):
        raise DataError(f"{where}: expected a number, got {value!r}")
    return float(value)


def table(where: str, value: Any) -> dict[str, Any]:
    """A TOML table."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, got {value!r}")
    return value


def strings(where: str, value: Any) -> tuple[str, ...]:
    """A list of at least one text."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: expected a list of names, got {value!r}")
    return tuple(value)


def check_keys(where: str, value: Any, *, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    """A table whose keys are all ``allowed`` and that has the ``required`` ones."""
    for key in table(where, value):
        if key not in allowed:
            raise DataError(f"{where}: unknown key {key!r}; expected one of {', '.join(allowed)}")
    for key in required:
        if key not in value:
            raise DataError(f"{where}: missing key {key!r}")
