"""Work folders hold a folder in progress, next to its destination. The work of an interrupted run is kept there."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError

LOCK, KEY = "lock", "key"
REPLACED = "replaced"  # the folder that publishing replaces
LAYOUT = 3  # layout of a work folder; increase it on changes, so that no other version's work is resumed


@contextmanager
def work_folder(folder: Path, key: str) -> Iterator[Path]:
    """Provides the folder ``.NAME.work`` next to ``folder``, with the work of an interrupted run of the same ``key``.

    The folder is removed when the block succeeds or raises DataError, which another run would raise again. It is kept
    after an interruption or on a full disk.
    """
    work = _work_path(folder)
    work.mkdir(parents=True, exist_ok=True)
    with file_lock(work / LOCK, error=f"{folder}: another process is preparing it"):
        _restore_replaced(work, folder)
        if not _has_key(work, key):
            _clear(work)
            replace_file(work / KEY, f"{LAYOUT} {key}".encode())
        try:
            yield work
        except DataError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def remove_finished(folder: Path, key: str) -> None:
    """Removes the work folder that a run left when it was killed after publishing, unless another process uses it."""
    if _has_key(_work_path(folder), key):
        with suppress(DataError), work_folder(folder, key):
            pass


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
        _restore_replaced(work, folder)
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


def publish(new: Path, folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Renames ``new`` to ``folder``. A former ``folder`` is moved next to ``new``, and restored if renaming fails.

    Args:
        check: raises an error if the existing ``folder`` may not be replaced.
    """
    replaced = new.with_name(REPLACED)
    if folder.exists():
        check()
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    try:
        new.rename(folder)
    except BaseException:
        _restore_replaced(new.parent, folder)
        raise


def remove_work(work: Path) -> None:
    """Removes a folder by renaming it first, so that no process sees half of it."""
    remove_leftovers(work)
    work.rename(_removed_path(work))
    remove_leftovers(work)


def remove_leftovers(work: Path) -> None:
    """Removes what ``remove_work`` left if its process was killed."""
    shutil.rmtree(_removed_path(work), ignore_errors=True)


def _removed_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.old")


def _restore_replaced(work: Path, folder: Path) -> None:
    """Restores the folder that an interrupted ``publish`` moved away."""
    if (work / REPLACED).exists() and not folder.exists():
        (work / REPLACED).rename(folder)


def _clear(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
