"""Work folders hold a folder in progress, next to its destination. The work of an interrupted run is kept there."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast._publish import aside_path, lock_path, publisher_lock, remove, replace, restore
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import BusyError, DataError

LOCK, KEY = "lock", "key"
PREPARED = "prepared"  # the folder in progress
REPLACED = "replaced"  # where version 0.1.0 kept the folder that publishing replaces
PUBLISHING = "publishing"  # the inode number of PREPARED, written before it is published
LAYOUT = 4  # layout of a work folder; increase it on changes, so that no other version's work is resumed


@contextmanager
def work_folder(folder: Path, key: str) -> Iterator[Path]:
    """Provides the folder ``.NAME.work`` next to ``folder``, with the work of an interrupted run of the same ``key``.

    The folder is removed when the block succeeds or raises DataError, which another run would raise again. It is kept
    after an interruption or on a full disk.

    Raises:
        BusyError: another process or thread prepares ``folder``.
    """
    work = _work_path(folder)
    with publisher_lock(folder):
        remove(_removed_path(work))
        _restore(work, folder)
        if work.exists() and (is_published(work) or not _has_key(work, key)):
            remove_work(work)
        if not work.exists():
            work.mkdir()
            replace_file(work / KEY, f"{LAYOUT} {key}".encode())
        try:
            yield work
        except DataError:
            remove_work(work)
            raise
        remove_work(work)


def remove_finished(folder: Path, key: str) -> None:
    """Removes what a run left when it was killed after publishing, unless another process prepares ``folder``.

    The unfinished work of other inputs is kept.
    """
    work = _work_path(folder)
    if _is_finished(work, key):
        with suppress(BusyError, OSError), publisher_lock(folder):  # the folder above may be read-only
            if _is_finished(work, key):  # still
                remove_work(work)
    remove_leftovers(work, folder)


def _is_finished(work: Path, key: str) -> bool:
    """Returns whether there is work of ``key``, which is published, or half-removed work of 0.1.0."""
    return work.exists() and (_has_key(work, key) or not (work / KEY).exists())


def _work_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"


def _has_key(work: Path, key: str) -> bool:
    return (work / KEY).is_file() and (work / KEY).read_text() == f"{LAYOUT} {key}"


@contextmanager
def shared_work_folder(work: Path, folder: Path, shard: Shard, key: dict[str, Any]) -> Iterator[None]:
    """Locks the existing folder ``work`` for one shard. Other shards may use it at the same time.

    Args:
        folder: destination of the prepared folder.
        key: named values that must be equal for all shards. They are stored in ``work``.

    Raises:
        DataError: another process runs this shard, or the shards in ``work`` have another key.
    """
    key = json.loads(dumps({"layout of the folder": LAYOUT} | key))
    with file_lock(work / LOCK):
        _restore(work, folder)
        if not (work / KEY).exists():
            replace_file(work / KEY, dumps(key).encode())
    stored = json.loads((work / KEY).read_text(encoding="utf-8"))
    if different := [name for name, value in key.items() if stored.get(name) != value]:
        raise DataError(
            f"shard {shard}: the shards in {work} were started with a different {', '.join(different)}; use the same "
            "one, or remove the folder to start again"
        )
    with file_lock(work / f"{LOCK}-{shard.number}", error=f"shard {shard}: another process is preparing it"):
        yield


@contextmanager
def file_lock(path: Path, error: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` during the block.

    Args:
        error: message of the DataError raised if another process holds the lock; None to wait for it.

    Raises:
        DataError: another process holds the lock.
        FileNotFoundError: the folder of ``path`` is gone.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if error else 0))
        except BlockingIOError as blocked:
            raise DataError(error) from blocked
        yield


def publish(work: Path, folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Publishes the prepared folder in ``work`` as ``folder``, unless a killed process has done so.

    Call it with the lock of ``folder``.

    Args:
        check: raises an error if the existing ``folder`` may not be replaced.
    """
    if is_published(work):
        return
    if folder.exists():
        check()
    new = work / PREPARED
    replace_file(work / PUBLISHING, str(new.stat().st_ino).encode())
    replace(new, folder, aside_path(folder))


def _restore(work: Path, folder: Path) -> None:
    """Restores the folder that a killed ``publish`` has moved aside. Version 0.1.0 moved it into ``work``."""
    restore(aside_path(folder), folder)
    restore(work / REPLACED, folder)


def is_published(work: Path) -> bool:
    """Returns whether the work is published, so that the folder in progress is gone or is the former one."""
    try:
        number = int((work / PUBLISHING).read_text())
    except (FileNotFoundError, ValueError):
        return False
    new = work / PREPARED
    return not new.exists() or new.stat().st_ino != number


def remove_work(work: Path) -> None:
    """Removes a folder by renaming it first, so that no process sees half of it."""
    remove(_removed_path(work))
    work.rename(_removed_path(work))
    remove(_removed_path(work))


def remove_leftovers(work: Path, folder: Path) -> None:
    """Removes what ``remove_work`` left if its process was killed, unless another process prepares ``folder``."""
    if _removed_path(work).exists() or lock_path(folder).exists():
        with suppress(BusyError, OSError), publisher_lock(folder):
            remove(_removed_path(work))


def _removed_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.old")
