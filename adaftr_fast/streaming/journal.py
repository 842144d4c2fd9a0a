"""What a stream remembers: a record per finished chunk, the chunk in progress, and the last export."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaftr_fast._files import naming, replace_file, sync
from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast.errors import DataError
from adaftr_fast.stores import as_path, recorded
from adaftr_fast.streaming.source import Chunk, Position

RECORDS = "stream.jsonl"
CURRENT = "current.json"
EXPORTED = "exported.json"


class Journal:
    """The files of a stream's state. Each change is on disk when the method returns, or has not happened.

    Args:
        folder: the folder of the stream, which this process alone writes.

    Attributes:
        records: the records of the finished chunks, trained or left out.
        done: the positions of these chunks by name, in order.
        trained: the numbers of the chunks that were trained on.

    Raises:
        DataError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[dict[str, Any]] = []
        self.done: dict[str, Position] = {}
        self.trained: list[int] = []
        for record in _read(folder / RECORDS):
            self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.done[record["name"]] = record["position"]
        if "error" not in record:
            self.trained.append(record["chunk"])

    def append(self, record: dict[str, Any]) -> None:
        """Adds the record of a chunk, which is finished by that."""
        path = self.folder / RECORDS
        is_new = not path.exists()
        with naming(path), path.open("ab") as file:
            file.write((dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.folder)
        self._add(record)

    def current(self) -> Chunk | None:
        """Returns the chunk that was begun and is not finished."""
        content = _object(self.folder / CURRENT)
        if content is None or content["name"] in self.done:
            return None
        return Chunk(**content | {"file": as_path(content["file"])})

    def begin(self, chunk: Chunk) -> None:
        """Notes the chunk that is trained next, also by a later process."""
        self._write(CURRENT, asdict(chunk) | {"file": recorded(chunk.file)})

    def exported(self) -> tuple[int, float]:
        """Returns the number of the chunk of the last export, 0 for none, and its time in seconds since 1970."""
        content = _object(self.folder / EXPORTED) or {"chunk": 0, "time": 0.0}
        return content["chunk"], content["time"]

    def note_export(self, chunk: int, at: float) -> None:
        """Notes that the model of a chunk has been exported."""
        self._write(EXPORTED, {"chunk": chunk, "time": at})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        replace_file(self.folder / name, (dumps(content) + "\n").encode())


def _read(path: Path) -> list[dict[str, Any]]:
    """Reads the records. A last line without its end, of a killed process, is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    try:
        return [from_json(dict[str, Any], loads(line)) for line in content[:whole].decode().split("\n")[:-1]]
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return from_json(dict[str, Any], loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error
