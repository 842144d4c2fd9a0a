"""Work folders hold a folder in progress, next to its destination. The work of an interrupted run is kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaftr_fast._files import NEW, replace_file, sync
from adaftr_fast._publish import aside_path, lock_path, publisher_lock, remove, replace, restore
from adaftr_fast.errors import BusyError, DataError

KEY = "key"
PREPARED = "prepared"  # the folder in progress
PUBLISHING = "publishing"  # the inode number of PREPARED, written before it is published
LAYOUT = 7  # layout of a work folder; increase it on changes, so that no other version's work is resumed


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
        restore(aside_path(folder), folder)
        if work.exists() and (is_published(work) or not _has_key(work, key)):
            remove_work(work)
        if not work.exists():
            work.mkdir()
            replace_file(work / KEY, f"{LAYOUT} {key}".encode())
        for left in list(work.rglob(f".*{NEW}*")):  # of killed processes
            remove(left)
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
    """Returns whether there is work of ``key``, which is published, or work without a key, which has not begun."""
    return work.exists() and (_has_key(work, key) or not (work / KEY).exists())


def _work_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"


def _has_key(work: Path, key: str) -> bool:
    return (work / KEY).is_file() and (work / KEY).read_text() == f"{LAYOUT} {key}"


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


def is_published(work: Path) -> bool:
    """Returns whether the work is published, so that the folder in progress is gone or is the former one."""
    try:
        number = int((work / PUBLISHING).read_text())
    except (FileNotFoundError, ValueError):
        return False
    new = work / PREPARED
    return not new.exists() or new.stat().st_ino != number


def remove_work(work: Path) -> None:
    """Removes a folder by renaming it first, so that no process sees half of it, even after a power failure."""
    remove(_removed_path(work))
    work.rename(_removed_path(work))
    sync(work.parent)
    remove(_removed_path(work))


def remove_leftovers(work: Path, folder: Path) -> None:
    """Removes what ``remove_work`` left if its process was killed, unless another process prepares ``folder``."""
    if _removed_path(work).exists() or lock_path(folder).exists():
        with suppress(BusyError, OSError), publisher_lock(folder):
            remove(_removed_path(work))


def _removed_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.old")
