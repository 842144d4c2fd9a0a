"""Writes a schema as TOML, to be edited and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast._toml import to_toml
from adaftr_fast.errors import DataError


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
    content = f"# {comment}\n{to_toml(source)}".encode()
    if path.exists():
        if path.read_bytes() != content:
            raise DataError(f"write_schema: {path} exists with another content; name another file")
        return
    replace_file(path, content)
