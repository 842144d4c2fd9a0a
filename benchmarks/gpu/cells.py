"""A cell is one measurement. A journal keeps the finished cells of all stages, so that a killed run
loses none.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]
JOURNAL = "measured.jsonl"
"""The file of all stages: a machine may bring back few files."""


@dataclass(frozen=True)
class Setting:
    """What the stages are told.

    Attributes:
        out: the folder of the journal.
        wheels: the folder of wheels that the build stage installs from, or None.
        dry: tiny sizes on the CPU, to try the program itself.
        commit: what is recorded as the measured commit; None asks git.
        until: the time, in seconds since the epoch, at which no cell may run any longer. A worker
            is told when its stage ends.
    """

    out: Path
    wheels: Path | None = None
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
        measure: takes the key and the setting, and returns the figures. The supervisor, which
            imports no stage, has None here.
        seconds: what it takes by estimate; a stage does not begin a cell that would pass its end.
        planned: belongs to the plan of two calls; the other cells take the time that is left.
        captures: captures a CUDA graph. A capture that fails may leave the allocator of its process
            unusable.
        limit: the seconds after which it is ended, if it has others than its stage's ``LIMIT``.
    """

    key: Row
    measure: Callable[[Row, Setting], Row] | None
    seconds: float = 0.0
    planned: bool = True
    captures: bool = False
    limit: float | None = None

    @cached_property
    def name(self) -> str:
        return name_of(self.key)


def name_of(key: Row) -> str:
    """Returns the key on one line, "precision=bfloat16 batch=1024"."""
    return " ".join(f"{name}={value}" for name, value in key.items())


class Journal:
    """The lines of all stages: JSON objects, each on disk before the next cell begins.

    A line names its stage and is ``{"cell": key, "result": figures}``, ``{"started": name}``,
    ``{"left": [planned, all], "finished": number}`` or ``{"machine": facts}``. A run that was killed
    within a write
    leaves half a line at the end, which is not read and which the next write removes.

    Raises:
        ValueError: a line other than the last is not a JSON object.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        content = self.path.read_bytes() if self.path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        self.lines = []
        for number, line in enumerate(content[: self._size].splitlines(), start=1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}:{number}: expected a JSON object, got {line[:80]!r}"
                ) from error

    def append(self, stage: str, **line: Any) -> None:
        """Writes a line and waits until it is on disk."""
        line = {"stage": stage} | _finite(line)
        text = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._size)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(text)
        self.lines.append(line)

    def lines_of(self, stage: str, kind: str) -> list[Row]:
        """Returns the lines of a stage that have "cell", "started" or "left"."""
        return [line for line in self.lines if line["stage"] == stage and kind in line]

    def machine(self) -> Row | None:
        """Returns the facts about the machine that measured last."""
        return next((line["machine"] for line in reversed(self.lines) if "machine" in line), None)

    def cells(self, stage: str) -> dict[str, Row]:
        """Returns the last line of each finished cell by the cell's name."""
        return {name_of(line["cell"]): line for line in self.lines_of(stage, "cell")}

    def starts(self, stage: str, name: str) -> int:
        """Returns how often a cell has begun since it last succeeded, without those whose limit was
        only what was left of the time of its stage.
        """
        count = 0
        for line in self.lines:
            if line["stage"] != stage:
                continue
            if line.get("started") == name and "short" not in line:
                count += 1
            elif "cell" in line and name_of(line["cell"]) == name:
                count *= "failed" in line["result"]
        return count


def _finite(value: Any) -> Any:
    """Returns the value with "inf" and "nan" as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
