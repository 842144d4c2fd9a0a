"""Dataclasses to JSON and back. Files may be edited by hand, so reading checks every type and
errors name the key.
"""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import suppress
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
EXPECTED: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list such as '[8, 4]' or '[\"a\", \"b\"]'",
    dict: "a JSON object such as '{\"a\": 1}'",
}
"""The names of types in errors."""


def dumps(value: Any, indent: int | None = None) -> str:
    """Returns plain values and dataclasses as JSON. NaN and infinities become null, because JSON
    lacks them; dates become ISO text.
    """
    return json.dumps(
        _finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str
    )


def loads(text: str) -> Any:
    """Reads JSON. Raises ValueError if the text is not JSON or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Converts a result of ``json.loads`` to ``kind``: a dataclass, list, dict, Literal, union or
    plain type.

    An integer is accepted for a float; null becomes NaN.

    Args:
        kind: the type to convert to.
        value: the value to convert.
        where: path of the value, for error messages.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type; the message names the
            path.
    """
    converted: T = _converted(kind, value, where)
    return converted


def _converted(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    arguments = get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if NoneType in arguments:  # of unions, only X | None is used
        return None if value is None else _converted(arguments[0], value, where)
    if origin is list and isinstance(value, list):
        return [
            _converted(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)
        ]
    if origin is dict and isinstance(value, dict):
        return {
            key: _converted(arguments[1], item, _join(where, key)) for key, item in value.items()
        }
    if origin is Literal and value in arguments:
        return value
    if origin is Literal:
        raise ValueError(
            f"{where or 'the file'}: expected one of {', '.join(map(str, arguments))}, got "
            f"{shown(value)}"
        )
    if kind is float and value is None:
        return math.nan
    if kind is float and type(value) in (int, float):
        with suppress(OverflowError):  # an integer beyond the range of floats
            return float(value)
    if type(value) is kind:
        return value
    expected = EXPECTED.get(origin or kind, kind)
    raise ValueError(f"{where or 'the file'}: expected {expected}, got {shown(value)}")


def shown(value: Any) -> str:
    """Returns a value as errors show it: text in quotes, so that "1" is not taken for 1."""
    return repr(value) if isinstance(value, str) else str(value)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the file'}: expected an object, got {shown(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ValueError(
                f"unknown key {_join(where, key)!r}; expected one of {', '.join(fields)}"
            )
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in value and not optional:
            raise ValueError(f"missing key {_join(where, name)!r}")
    hints = _hints(kind)
    return kind(
        **{key: _converted(hints[key], item, _join(where, key)) for key, item in value.items()}
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass, which take longer to find than a value to
    convert.
    """
    return get_type_hints(kind)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _finite(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
