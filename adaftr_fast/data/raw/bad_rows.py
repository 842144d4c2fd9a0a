"""Rows of text inputs that could not be read: how many, why, and the first of them by file and line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from adaftr_fast.errors import DataError

EXAMPLES = 5  # kept of all
TEXT = 120  # characters shown of a row


@dataclass(frozen=True)
class BadLine:
    """A row that was left out; ``line`` counts from 1."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class BadRows:
    """What was left out of the text inputs of a prepared folder.

    Attributes:
        rows: all rows that were read.
        bad: of these, rows left out.
        reasons: rows by why.
        examples: the first ones, as ``file:line: why: text``.
    """

    rows: int = 0
    bad: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def __add__(self, other: BadRows) -> BadRows:
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        examples = (self.examples + other.examples)[:EXAMPLES]
        return BadRows(self.rows + other.rows, self.bad + other.bad, reasons, examples)

    def shifted(self, path: object, first_line: int) -> BadRows:
        """The examples of a block of a file, ``LINE: ...``, with the file's name and line numbers."""
        placed = []
        for example in self.examples:
            line, rest = example.split(":", 1)
            placed.append(f"{path}:{int(line) + first_line}:{rest}")
        return BadRows(self.rows, self.bad, self.reasons, placed)

    def check(self, tolerance: float) -> None:
        """Raises DataError if more than the share ``tolerance`` of the rows is bad."""
        if self.bad > tolerance * self.rows:
            raise DataError(f"{self.summary()}; tolerated: a share of {tolerance:g} (bad_rows)")

    def summary(self) -> str:
        """One line with all of it."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return f"{self.bad:,} of {self.rows:,} rows cannot be read ({reasons}); first: {' | '.join(self.examples)}"


def bad_rows(rows: int, lines: Iterable[BadLine]) -> BadRows:
    """The account of one block of ``rows`` rows, its lines counted from 1."""
    lines = sorted(lines, key=lambda bad: bad.line)
    reasons: dict[str, int] = {}
    for bad in lines:
        reasons[bad.reason] = reasons.get(bad.reason, 0) + 1
    examples = [f"{bad.line}: {bad.reason}: {bad.text[:TEXT]!r}" for bad in lines[:EXAMPLES]]
    return BadRows(rows, len(lines), reasons, examples)
