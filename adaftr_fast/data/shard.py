"""One of the shards into which the rows of a log are divided. Shards are prepared independently of each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def all(cls, count: int) -> list[Shard]:
        """Returns all ``count`` shards in order."""
        return [cls(number + 1, count) for number in range(count)]

    @property
    def stride(self) -> slice:
        """Selects every ``count``-th item of a list, starting with item ``number``."""
        return slice(self.number - 1, None, self.count)


UNSHARDED = Shard()
