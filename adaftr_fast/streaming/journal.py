"""What a stream remembers: a record per finished chunk, the chunk in progress, and the last export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import DataError
from adaftr_fast.runs import daily
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.streaming.source import Chunk, Position

RECORDS = "stream.jsonl"
CURRENT = "current.json"
EXPORTED = "exported.json"


class Journal(daily.Journal):
    """The files of a stream's state. Each change is on disk when the method returns, or has not happened.

    Args:
        folder: the folder of the stream, which this run alone writes.
        ranks: the ranks, which all call ``append``. Rank 0 alone calls the other methods.
        output: the output that ``folder`` is.

    Raises:
        DataError: a file is damaged.
    """

    def __init__(self, folder: Path, ranks: Ranks | None = None, output: Output = HERE) -> None:
        super().__init__(folder / RECORDS, ranks)
        self.folder = folder
        self.output = output

    @property
    def done(self) -> dict[str, Position]:
        """The positions of the finished chunks, trained or left out, by name, in order."""
        return {record["name"]: record["position"] for record in self.records}

    @property
    def trained(self) -> list[int]:
        """The numbers of the chunks that were trained on."""
        return [record["chunk"] for record in self.records if "error" not in record]

    def current(self) -> Chunk | None:
        """Returns the chunk that was begun and is not finished."""
        content = _object(self.folder / CURRENT)
        if content is None or content["name"] in self.done:
            return None
        return Chunk.of(content, self.output)

    def begin(self, chunk: Chunk) -> None:
        """Notes the chunk that is trained next, also by a later process."""
        self._write(CURRENT, chunk.plain(self.output))

    def exported(self) -> tuple[int, float]:
        """Returns the number of the chunk of the last export, 0 for none, and its time in seconds since 1970."""
        content = _object(self.folder / EXPORTED) or {"chunk": 0, "time": 0.0}
        return content["chunk"], content["time"]

    def note_export(self, chunk: int, at: float) -> None:
        """Notes that the model of a chunk has been exported."""
        self._write(EXPORTED, {"chunk": chunk, "time": at})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        replace_file(self.folder / name, (dumps(content) + "\n").encode())


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return from_json(dict[str, Any], loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error
