"""The type of options that take a path or a URL of a store."""

from __future__ import annotations


def place(text: str) -> str:
    """Returns the text; the functions that commands call parse it, since only they import what reads stores."""
    return text
