"""A cell is one measurement. A journal keeps the finished cells of a stage, so that a killed run loses none."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What the stages are told.

    Attributes:
        out: the folder of the journals.
        dry: tiny sizes on the CPU, to try the program itself.
        commit: what is recorded as the measured commit; None asks git.
        until: the time, in seconds since the epoch, at which no cell may run any longer.
    """

    out: Path
    dry: bool = False
    commit: str | None = None
    until: float = math.inf

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


@dataclass(frozen=True)
class Cell:
    """One measurement of a stage.

    Attributes:
        key: what is measured; it identifies the cell, so it stays equal from run to run.
        measure: measures it and returns the figures.
    """

    key: Row
    measure: Callable[[], Row]

    @property
    def name(self) -> str:
        return name_of(self.key)


def name_of(key: Row) -> str:
    """Returns the key on one line, "precision=bfloat16 batch=1024"."""
    return " ".join(f"{name}={value}" for name, value in key.items())


class Journal:
    """The lines of one stage: JSON objects, appended in one write each and on disk before the next cell begins.

    A line is ``{"machine": facts}``, ``{"started": key, "time": seconds}`` or ``{"cell": key, "result": figures}``. A
    run that was killed within a write leaves half a line at the end, which is not read and which the next write
    removes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[Row]:
        """Returns the whole lines, in order.

        Raises:
            ValueError: a line other than the last is not a JSON object.
        """
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], 1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.path}:{number}: expected a JSON object, got {line[:80]!r}") from error
        return found

    def append(self, line: Row) -> None:
        """Writes a line and waits until it is on disk."""
        text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # without half a line
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def cells(self) -> dict[str, Row]:
        """Returns the last line of each finished cell by the cell's name."""
        return {name_of(line["cell"]): line for line in self.lines() if "cell" in line}

    def machine(self) -> Row | None:
        """Returns the facts about the machine that measured last."""
        return next((line["machine"] for line in reversed(self.lines()) if "machine" in line), None)


def _finite(value: Any) -> Any:
    """Returns the value with "inf" and "nan" as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
