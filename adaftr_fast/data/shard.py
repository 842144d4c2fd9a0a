"""One shard of a ``prepare`` run. Each shard runs in its own process, on one machine or several."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaftr_fast.errors import DataError


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``, counted from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise DataError(f"shard: expected a number from 1 to {self.count}, got {self.number}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses text such as ``3/8``. Raises DataError for any other form."""
        if not re.fullmatch(r"\d+/\d+", text):
            raise DataError(f"shard: expected NUMBER/COUNT, such as 3/8, got {text!r}")
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def all(self) -> list[Shard]:
        """All ``count`` shards in order."""
        return [Shard(number + 1, self.count) for number in range(self.count)]

    @property
    def stride(self) -> slice:
        """Selects every ``count``-th item of a list, starting with item ``number``."""
        return slice(self.number - 1, None, self.count)


UNSHARDED = Shard()
