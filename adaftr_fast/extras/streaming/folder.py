"""A watched folder: every new file is a chunk."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.errors import DataError, first_line
from adaftr_fast.extras.streaming.source import Chunk, Position, check_number
from adaftr_fast.files.whole import is_unicode

PARQUET = (".parquet", ".pq")
UNFINISHED = (".tmp", ".part")
HIDDEN = (".", "_")


class _State(NamedTuple):
    """What changes while a file is written."""

    size: int
    changed: int
    inode: int


class FolderSource:
    """The files of a folder in the order of their names, each as soon as it is whole.

    A file is whole if it has not changed for ``settle`` seconds and opens: a parquet file has its
    footer, another is not empty. Names that begin with "." or "_" or end in ".tmp" or ".part" are
    left out, so a writer may use them and rename a file when it is whole. A file that comes late,
    with a name before that of a finished one, is the next chunk.

    Args:
        folder: the folder. Its subfolders are not read.
        settle: the seconds without a change, by the clock of the file system or while this object
            watches.

    Raises:
        ConfigError: ``settle`` is negative or not finite.
        DataError: ``folder`` is not a folder, or its name is not UTF-8.
    """

    def __init__(self, folder: Path, settle: float = 2.0) -> None:
        check_number("settle", settle)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder to watch")
        if not is_unicode(str(folder)):
            raise DataError(f"{str(folder)!a}: expected a path in UTF-8")
        self.folder = folder
        self.settle = settle
        self._seen: dict[str, tuple[_State, float]] = {}  # and since when
        self._reported: dict[str, _State] = {}  # files that do not open

    def next(self, done: dict[str, Position]) -> Chunk | None:
        """Returns the first whole file that is not in ``done``."""
        names = sorted(
            path.name
            for path in self.folder.iterdir()
            if _is_data(path.name) and path.name not in done
        )
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        for name in names:
            path = self.folder / name
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            state = _State(stat.st_size, stat.st_mtime_ns, stat.st_ino)
            if path.is_file() and self._is_settled(name, state) and self._opens(path, state):
                return Chunk(name, path, stat.st_mtime)
        return None

    def _is_settled(self, name: str, state: _State) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(name, (None, now))
        if before != state:
            since = now
        self._seen[name] = state, since
        return max(now - since, time.time() - state.changed / 1e9) >= self.settle

    def _opens(self, path: Path, state: _State) -> bool:
        if state.size == 0 and path.suffix.lower() not in PARQUET:
            return False
        cause = _fault(path)
        if cause is not None and self._reported.get(path.name) != state:
            self._reported[path.name] = state
            warnings.warn(
                f"{path}: left out until it changes: {cause}", RuntimeWarning, stacklevel=3
            )
        return cause is None


def _fault(path: Path) -> str | None:
    """Returns why a file cannot be read; None if it can."""
    if not is_unicode(path.name):
        return "its name is not UTF-8"
    if path.suffix.lower() not in PARQUET:
        return None
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        return first_line(error)
    return None


def _is_data(name: str) -> bool:
    return not name.startswith(HIDDEN) and not name.endswith(UNFINISHED)
