"""Reports bad rows of text inputs: their number, the reasons, and the first ones by file and line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from adaftr_fast.errors import DataError

EXAMPLES = 5  # bad rows reported with their text
TEXT = 120  # characters of a row that are shown


@dataclass(frozen=True)
class BadLine:
    """A row that was left out. ``line`` counts from 1."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class BadRows:
    """Rows left out of the text inputs of a prepared folder.

    Attributes:
        rows: number of rows read.
        bad: number of rows left out.
        reasons: number of rows left out, by reason.
        examples: the first ones, as ``file:line: reason: text``.
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
        """Adds the file name and ``first_line`` to the examples of one block, which start with a line number."""
        located = []
        for example in self.examples:
            line, rest = example.split(":", 1)
            located.append(f"{path}:{int(line) + first_line}:{rest}")
        return BadRows(self.rows, self.bad, self.reasons, located)

    def check(self, tolerance: float) -> None:
        """Raises DataError if the share of bad rows exceeds ``tolerance``."""
        if self.bad > tolerance * self.rows:
            raise DataError(f"{self.summary()}; bad_rows tolerates a share of {tolerance:g}")

    def summary(self) -> str:
        """Returns a summary in one line."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return f"{self.bad:,} of {self.rows:,} rows cannot be read ({reasons}); first: {' | '.join(self.examples)}"


def bad_rows(rows: int, lines: Iterable[BadLine]) -> BadRows:
    """Returns the report of one block of ``rows`` rows. Lines of the block count from 1."""
    lines = sorted(lines, key=lambda bad: bad.line)
    reasons: dict[str, int] = {}
    for bad in lines:
        reasons[bad.reason] = reasons.get(bad.reason, 0) + 1
    examples = [f"{bad.line}: {bad.reason}: {bad.text[:TEXT]!r}" for bad in lines[:EXAMPLES]]
    return BadRows(rows, len(lines), reasons, examples)
