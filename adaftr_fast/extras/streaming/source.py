"""Where a stream's chunks come from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adaftr_fast.errors import ConfigError
from adaftr_fast.runs.output import Output

Position = dict[str, Any]
"""A plain value from which a source goes on after a chunk."""


def check_number(name: str, value: float, least: float = 0) -> None:
    """Raises ConfigError if an option of a stream is NaN, infinite or less than ``least``."""
    if not least <= value < math.inf:
        raise ConfigError(f"{name}: expected a finite number of at least {least}, got {value}")


@dataclass(frozen=True)
class Chunk:
    """A part of a stream.

    Attributes:
        name: the name, which no other chunk of the stream has.
        file: the rows, whole, as ``prepare`` reads them.
        arrived: when the chunk was whole, in seconds since 1970.
        position: where the source goes on after the chunk.
        set_aside: what came before the end of the chunk and is not a row, as plain values; {} for
            nothing.
    """

    name: str
    file: Path
    arrived: float
    position: Position = field(default_factory=dict)
    set_aside: dict[str, Any] = field(default_factory=dict)

    def plain(self, output: Output) -> dict[str, Any]:
        """Returns the chunk as plain values, for another process, also on another machine."""
        return asdict(self) | {"file": output.recorded(self.file)}

    @classmethod
    def of(cls, plain: dict[str, Any], output: Output) -> Chunk:
        """Returns the chunk whose ``plain`` values these are."""
        return cls(**plain | {"file": output.found(plain["file"])})


class Source(Protocol):
    """Chunks in order. What has been trained is remembered by the stream, not by the source."""

    def next(self, done: dict[str, Position]) -> Chunk | None:
        """Returns the chunk after ``done``, or None if it has not arrived yet.

        Args:
            done: the positions of all finished chunks by name, in the order of the stream.
        """
