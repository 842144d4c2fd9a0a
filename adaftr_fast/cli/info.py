"""``adaftr-fast info``."""

from __future__ import annotations

from typing import Any

import jsonargparse

from adaftr_fast.cli.options import Parser

DESCRIPTION = "Show the build, the instruction sets in use and the available data sets."


def add_arguments(parser: Parser) -> None:
    """Adds no options."""


def run(arguments: jsonargparse.Namespace) -> None:
    """Prints one line per fact."""
    from adaftr_fast._extension import build_info
    from adaftr_fast.data.schema.parse import shipped_schemas

    info: dict[str, Any] = build_info() | {"data sets": ", ".join(shipped_schemas())}
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {value}")
