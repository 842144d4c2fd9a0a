"""The body of a request: JSON rows, of bounded size and memory."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adaftr_fast.serving.rows import Row

MOST_ROWS = 10_000  # of a request; more are a task for ``predict``
MOST_BYTES = 1 << 26
MOST_HELD = 1 << 29  # bytes that the requests in progress hold together
VALUE_BYTES = 128  # about the most that a value of JSON takes in Python, beside its text


class Refused(Exception):
    """A request that is not scored.

    Attributes:
        status: the HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Take = Callable[[int], None]
"""Takes so many bytes from a budget. Raises Refused if it has fewer."""


class Budget:
    """The memory that requests in progress hold together.

    Args:
        size: the number of bytes.
    """

    def __init__(self, size: int = MOST_HELD) -> None:
        self._size = size
        self._held = 0

    @contextmanager
    def share(self) -> Iterator[Take]:
        """Yields a function that takes bytes, all of which are given back after the block."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if taken + count > self._size:
                raise Refused(
                    413,
                    f"expected rows that take at most {self._size >> 20} MiB of memory: send fewer "
                    "of them",
                )
            if self._held + count > self._size:
                raise Refused(
                    503, f"the requests in progress take {self._size >> 20} MiB of memory already"
                )
            self._held += count
            taken += count

        try:
            yield take
        finally:
            self._held -= taken


def read_body(body: bytearray, take: Take) -> list[Row]:
    """Returns the rows of a body.

    Args:
        body: JSON (RFC 8259).
        take: takes the memory that the rows may hold, before they are parsed.

    Raises:
        Refused: the body is not JSON, not an object or an array of objects, or its rows are too
            many or take too much memory.
    """
    # each value but the first follows a comma or an opening bracket
    values = 1 + sum(map(body.count, (b",", b"[", b"{")))
    try:
        text = body.decode()
        take(sys.getsizeof(text) + VALUE_BYTES * values)
        found = json.loads(
            text, parse_float=_number, parse_constant=_constant, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"expected JSON: {error}") from error
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise Refused(400, "expected a row as a JSON object, or an array of them")
    if len(rows) > MOST_ROWS:
        raise Refused(413, f"expected at most {MOST_ROWS:,} rows, got {len(rows):,}")
    return rows


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text} is beyond the range of float64")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON; a missing value is null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, count), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {name!r} {count} times")
    return found
