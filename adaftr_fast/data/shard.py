"""One of several parts of a preparation, each done by a process of its own, on one machine or many."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaftr_fast.errors import DataError


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``count``, counted from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise DataError(f"part: expected a number from 1 to {self.count}, got {self.number}")

    @classmethod
    def parse(cls, text: str) -> Part:
        """``3/8``. Raises DataError if it is no such text."""
        if not re.fullmatch(r"\d+/\d+", text):
            raise DataError(f"part: expected NUMBER/COUNT, such as 3/8, got {text!r}")
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def all(self) -> list[Part]:
        """The parts of the whole, in their order."""
        return [Part(number + 1, self.count) for number in range(self.count)]

    @property
    def every(self) -> slice:
        """Its share of things that are dealt out one by one."""
        return slice(self.number - 1, None, self.count)


WHOLE = Part()
