"""Writes a schema as TOML, to be edited and read again."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast.errors import DataError

BARE = re.compile(r"[A-Za-z0-9_-]+")


def write_schema(path: Path, source: dict[str, Any], comment: str) -> None:
    """Writes the content of a schema file; a file that holds just that stays as it is.

    Args:
        path: the file, whose name ends in ``.toml``.
        source: the content of the schema, as ``parse_schema`` reads it.
        comment: the first line.

    Raises:
        DataError: the file has another name or exists with another content, which may have been edited.
        OSError: the file cannot be written.
    """
    if path.suffix != ".toml":
        raise DataError(f"write_schema: expected a file name that ends in .toml, got {str(path)!r}")
    content = f"# {comment}\n{_toml(source)}".encode()
    if path.exists():
        if path.read_bytes() != content:
            raise DataError(f"write_schema: {path} exists with another content; name another file")
        return
    replace_file(path, content)


def _toml(source: dict[str, Any]) -> str:
    plain = {key: value for key, value in source.items() if not isinstance(value, dict)}
    sections = [(key, value) for key, value in source.items() if isinstance(value, dict)]
    return _lines(plain) + "".join(f"\n[{_key(key)}]\n{_lines(section)}" for key, section in sections)


def _lines(table: dict[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    """Returns a string of JSON, which is one of TOML too once DEL is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
