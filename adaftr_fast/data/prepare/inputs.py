"""The input files of a run: what identifies them, and whether they stay as they are."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from adaftr_fast._files import AnyPath
from adaftr_fast.data.raw.source import data_files
from adaftr_fast.errors import DataError, EngineError

State = list[tuple[str, int, int]]
VISIBLE_SECONDS = 60.0  # in which a file of another machine must appear on a shared file system
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class InputFiles:
    """The input files by role, and the name, size and modification time that every file had when the run started."""

    paths: dict[str, AnyPath]
    state: State

    @classmethod
    def found(cls, paths: dict[str, AnyPath]) -> InputFiles:
        """Returns the files as they are now. Raises DataError if one is missing."""
        return cls(paths, _state(_files(paths)))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.state)

    def files(self) -> list[AnyPath]:
        """Returns all files, those of a folder in reading order."""
        return _files(self.paths)

    def absolute(self) -> InputFiles:
        """Returns the same files under names for processes with another current folder."""
        return InputFiles({role: path.absolute() for role, path in self.paths.items()}, self.state)

    def check(self) -> None:
        """Raises DataError if a file has changed since this object was created."""
        if (now := _state(self.files())) != self.state:
            names = {file[0] for file in now + self.state if now.count(file) != self.state.count(file)}
            raise DataError(f"{', '.join(sorted(names))}: changed during the run; run prepare again")

    def check_seen(self) -> None:
        """Raises EngineError if this machine does not see these files, or sees others under their names."""
        for path in self.paths.values():
            check_seen(path)
        if _state(self.files()) != self.state:
            paths = ", ".join(str(path) for path in self.paths.values())
            raise EngineError(
                f"node {socket.gethostname()}: {paths}: sizes or times differ from those on the machine that started "
                "prepare; the files must be on a file system that all nodes share, and must not change"
            )


def check_seen(path: AnyPath, patience: float = 0.0) -> None:
    """Raises EngineError, which names this machine, if it does not see a file or folder within ``patience`` seconds."""
    end = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            node = f"node {socket.gethostname()}"
            raise EngineError(f"{node}: does not see {path}; it must be on a file system that all nodes share")
        time.sleep(POLL_SECONDS)


def _files(paths: dict[str, AnyPath]) -> list[AnyPath]:
    return [file for path in paths.values() for file in data_files(path)]


def _state(files: list[AnyPath]) -> State:
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
