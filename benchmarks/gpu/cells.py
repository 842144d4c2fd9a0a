"""A cell is one measurement. A journal keeps the finished cells of a stage, so that a killed run
loses none.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
JOURNAL = "measured.jsonl"
"""The file of all stages: a machine may bring back few files."""
STAGE = b'{"stage": '  # each line begins with it


@dataclass(frozen=True)
class Setting:
    """What the stages are told.

    Attributes:
        out: the folder of the journals.
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

    def to_json(self) -> str:
        """Returns the text that ``from_json`` reads in another process."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Setting:
        values = json.loads(text)
        wheels = values.pop("wheels")
        return cls(Path(values.pop("out")), None if wheels is None else Path(wheels), **values)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


@dataclass(frozen=True)
class Cell:
    """One measurement of a stage.

    Attributes:
        key: what is measured; it identifies the cell, so it stays equal from run to run.
        measure: measures it and returns the figures.
        seconds: what it takes by estimate; a stage does not begin a cell that would pass its end.
        planned: belongs to the plan of two calls; the other cells take the time that is left.
        captures: captures a CUDA graph. A capture that fails may leave the allocator of its process
            unusable.
        limit: the seconds after which it is ended, if it has others than its stage's ``LIMIT``.
    """

    key: Row
    measure: Callable[[], Row]
    seconds: float = 0.0
    planned: bool = True
    captures: bool = False
    limit: float | None = None

    @property
    def name(self) -> str:
        return name_of(self.key)


def name_of(key: Row) -> str:
    """Returns the key on one line, "precision=bfloat16 batch=1024"."""
    return " ".join(f"{name}={value}" for name, value in key.items())


class Journal:
    """The lines of one stage in the file of all: JSON objects, each on disk before the next cell
    begins.

    A line names its stage and is ``{"cell": key, "result": figures}``, ``{"started": name, ...}``,
    ``{"left": numbers, "time": when}`` or ``{"machine": facts}``. A run that was killed within a
    write leaves half a line at the end, which is not read and which the next write removes.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / JOURNAL
        self.stage = stage
        self._mark = STAGE + json.dumps(stage).encode()
        self._lines: list[Row] = []
        self._read = 0  # bytes of the whole lines, of all stages, that were read
        self._number = 0  # of these lines

    def lines(self) -> list[Row]:
        """Returns the whole lines of the stage, in order.

        Raises:
            ValueError: a line other than the last is not a JSON object.
        """
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._read)
            added = file.read().split(b"\n")[:-1]
        for line in added:
            self._number += 1
            self._read += len(line) + 1
            try:
                if line.startswith(self._mark):
                    self._lines.append(json.loads(line))
                elif not line.startswith(STAGE):
                    raise ValueError("the line of no stage")
            except ValueError as error:
                raise ValueError(
                    f"{self.path}:{self._number}: expected a JSON object, got {line[:80]!r}"
                ) from error
        return self._lines

    def append(self, line: Row) -> None:
        """Writes a line and waits until it is on disk."""
        text = (
            json.dumps({"stage": self.stage} | _finite(line), ensure_ascii=False, allow_nan=False)
            + "\n"
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            _drop_half_line(file)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def cells(self) -> dict[str, Row]:
        """Returns the last line of each finished cell by the cell's name."""
        return {name_of(line["cell"]): line for line in self.lines() if "cell" in line}

    def start(self, cell: Cell, now: float, limit: float, short: bool = False) -> None:
        """Notes that a cell begins; ``short`` where its limit is only what is left of the time of
        its stage.
        """
        line = {"started": cell.name, "key": cell.key, "time": now, "limit": limit}
        self.append(line | ({"short": True} if short else {}))

    def finish(self, key: Row, result: Row) -> None:
        self.append({"cell": key, "result": result})

    def in_progress(self, since: float) -> Row | None:
        """Returns the "started" line of the cell that was begun last, at ``since`` or later, unless
        it has finished.
        """
        last = next(
            (line for line in reversed(self.lines()) if "cell" in line or "started" in line), {}
        )
        return last if last.get("time", -math.inf) >= since else None

    def starts(self, name: str) -> int:
        """Returns how often a cell has begun since it last succeeded, without those whose limit was
        cut short.
        """
        count = 0
        for line in self.lines():
            if line.get("started") == name and "short" not in line:
                count += 1
            elif (
                "cell" in line and name_of(line["cell"]) == name and "failed" not in line["result"]
            ):
                count = 0
        return count

    def finished(self) -> int:
        """Returns how many results were written."""
        return sum("cell" in line for line in self.lines())

    def left(self, since: float = -math.inf) -> Row | None:
        """Returns the cells that a worker had left, {"planned": those of the plan, "all": all}, at
        ``since`` or later.

        None where no worker has counted them.
        """
        counted = (line for line in reversed(self.lines()) if "left" in line)
        return next((line["left"] for line in counted if line["time"] >= since), None)

    def machine(self) -> Row | None:
        """Returns the facts about the machine that measured last."""
        return next((line["machine"] for line in reversed(self.lines()) if "machine" in line), None)


def _drop_half_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(0)
    kept = file.read().rfind(b"\n") + 1
    if kept < end:
        file.truncate(kept)


def _finite(value: Any) -> Any:
    """Returns the value with "inf" and "nan" as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
