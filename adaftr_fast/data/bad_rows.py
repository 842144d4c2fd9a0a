"""Accounts for the lines of inputs: rows, blank lines, and bad rows with reasons and the first ones
by line or row. Counts the rows that are in no split.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

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
    """Rows of the inputs left out of a prepared folder.

    Attributes:
        rows: number of rows read.
        bad: number of rows left out.
        reasons: number of rows left out, by reason.
        examples: the first ones, as ``file:line: reason: text``, without text for a missing value;
            of parquet and tables as ``file: row N: reason``, where N counts from 0.
        lines: number of lines of text below the headers; None if the inputs were not text, or were
            prepared before lines were counted.
        blank: number of lines without any value, which are not rows.
    """

    rows: int = 0
    bad: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    lines: int | None = None
    blank: int = 0

    def __add__(self, other: BadRows) -> BadRows:
        reasons = dict(Counter(self.reasons) + Counter(other.reasons))
        examples = (self.examples + other.examples)[:EXAMPLES]
        counted = [each.lines for each in (self, other) if each.lines is not None]
        lines = sum(counted) if counted else None
        numbers = (self.rows + other.rows, self.bad + other.bad)
        return BadRows(*numbers, reasons, examples, lines, self.blank + other.blank)

    def shifted(self, path: object, first_line: int) -> BadRows:
        """Adds the file name and ``first_line`` to the examples of one block, which start with a
        line number.
        """
        located = []
        for example in self.examples:
            line, rest = example.split(":", 1)
            located.append(f"{path}:{int(line) + first_line}:{rest}")
        return replace(self, examples=located)

    def exceed(self, tolerance: float) -> bool:
        """Returns whether the share of bad rows exceeds ``tolerance``."""
        return self.bad > tolerance * self.rows

    @property
    def share(self) -> float:
        """The least tolerance that allows them, in steps of 0.001."""
        return math.ceil(1000 * self.bad / self.rows) / 1000

    def check(self, tolerance: float) -> None:
        """Raises DataError if the share of bad rows exceeds ``tolerance``."""
        if self.exceed(tolerance):
            if self.bad == self.rows:
                raise DataError(
                    f"{self.summary()}; no row is left: check the labels and how the text is "
                    "written"
                )
            # Without tolerance, the first bad block ends the reading, which tells little of the
            # whole.
            share = self.share if tolerance else max(self.share, 0.01)
            cure = "correct the file"
            if share > 0.5:
                cure = "most rows are bad: check the labels and how the text is written"
            if share < 1:  # which no tolerance is
                cure += f", or {option(share)} leaves out up to {100 * share:g} % of the rows"
            raise DataError(f"{self.summary()}; {cure}")

    def check_kept(self, path: object, kept: int) -> None:
        """Raises DataError unless each line of ``path`` is one of ``kept`` rows, a bad row or
        blank.
        """
        read = self.rows + self.blank if self.lines is None else self.lines
        if read != kept + self.bad + self.blank:
            account = f"{kept:,} rows kept, {self.bad:,} left out and {self.blank:,} blank"
            raise DataError(
                f"{path}: read {read:,} lines, but accounts for {account}; the others are lost"
            )

    def account(self) -> str:
        """Returns the numbers of lines, rows and bad rows in one line. ``lines`` must be known."""
        assert self.lines is not None
        kept = f"{self.rows - self.bad:,} rows kept + {self.bad:,} left out"
        others = self.rows + self.blank - self.lines  # of parquet and tables beside text
        read = f"{self.lines:,} lines below the header" + (
            f" + {others:,} rows of other inputs" if others else ""
        )
        return f"{read} = {kept}" + (f" + {self.blank:,} blank" if self.blank else "")

    def summary(self) -> str:
        """Returns a summary of the bad rows in one line."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        first = f"; first: {' | '.join(self.examples)}" if self.examples else ""
        return f"{self.bad:,} of {self.rows:,} rows cannot be read ({reasons}){first}"


def option(share: float) -> str:
    """Returns how a user allows a share of bad rows."""
    return f"--bad_rows {share:g} (in Python bad_rows={share:g})"


def check_share(bad_rows: float) -> None:
    """Raises DataError unless ``bad_rows`` is a share of rows that may be left out."""
    if not 0.0 <= bad_rows < 1.0:
        raise DataError(f"bad_rows: expected a share in [0, 1), got {bad_rows}")


@dataclass(frozen=True)
class Unused:
    """Numbers of rows that are in no split.

    Attributes:
        unmatched: rows that no split selects.
        dropped: rows that meet the condition ``drop``.
    """

    unmatched: int = 0
    dropped: int = 0

    def __add__(self, other: Unused) -> Unused:
        return Unused(self.unmatched + other.unmatched, self.dropped + other.dropped)
