"""A folder that is built beside its place and renamed into it; what an interrupted run built is kept for the next."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaftr_fast._files import replace_file
from adaftr_fast.data.errors import DataError

LOCK, KEY = "lock", "key"


@contextmanager
def workplace(folder: Path, key: str) -> Iterator[Path]:
    """A folder ``.NAME.work`` beside ``folder`` that holds what an interrupted run of the same ``key`` left.

    It is removed when the block ends well or by a DataError, which another run would meet again; an interruption or
    a full disk leaves it.

    Raises:
        DataError: another process works there.
    """
    work = folder.parent / f".{folder.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another process is preparing it") from error
        if not (work / KEY).is_file() or (work / KEY).read_text() != key:
            _empty(work)
            replace_file(work / KEY, key.encode())
        try:
            yield work
        except DataError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def publish(new: Path, folder: Path) -> None:
    """Renames ``new`` to ``folder``, whose former content is removed, or is back there if that fails."""
    old = folder.parent / f".{folder.name}.old-{os.getpid()}"
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _empty(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
