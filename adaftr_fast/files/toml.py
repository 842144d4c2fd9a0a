"""Plain values to TOML and back."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from typing import Any

from adaftr_fast.errors import ConfigError

BARE = re.compile(r"[A-Za-z0-9_-]+")
LONG_KEY = re.compile(r"""(?<!["'\w-])(?:["'\w-]++\.){200}""")


def to_toml(content: dict[str, Any]) -> str:
    """Returns a document whose tables are sections, and tables within them are inline.

    A key whose value is None is left out, because TOML lacks it.

    Raises:
        ConfigError: TOML cannot hold a value, such as None in a list.
    """
    plain = {key: value for key, value in content.items() if not isinstance(value, dict)}
    sections = [(key, value) for key, value in content.items() if isinstance(value, dict)]
    text = _lines(plain) + "".join(
        f"\n[{_key(key)}]\n{_lines(section)}" for key, section in sections
    )
    return text.removeprefix("\n")


def _lines(table: dict[str, Any]) -> str:
    return "".join(f"{pair}\n" for pair in _pairs(table))


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(_pairs(value))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    raise ConfigError(f"TOML cannot hold {value!r}")


def _text(text: str) -> str:
    """Returns a string of JSON, which is one of TOML too once DEL is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def loads_toml(text: str) -> dict[str, Any]:
    """Reads TOML. Raises ValueError if the text is not TOML or is nested too deeply."""
    if LONG_KEY.search(text):  # the time of tomllib grows with the square of a key's parts
        raise ValueError("nested too deeply")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
