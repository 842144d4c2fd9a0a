"""Work folders hold a folder in progress, next to its destination. The work of an interrupted run is kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaftr_fast._files import new_beside, remove_new, replace, replace_file, sync, sync_tree
from adaftr_fast._publish import lock_path, publisher_lock
from adaftr_fast.errors import BusyError, DataError

KEY = "key"  # the file that every work folder has
PREPARED = "prepared"  # the folder in progress
LAYOUT = 8  # layout of a work folder; increase it on changes, so that no other version's work is resumed


@contextmanager
def work_folder(folder: Path, key: str) -> Iterator[Path]:
    """Provides the folder ``.NAME.work`` next to ``folder``, with the work of an interrupted run of the same ``key``.

    The folder is removed when the block succeeds or raises DataError, which another run would raise again. It is kept
    after an interruption or on a full disk, except by a process that is killed in the moment in which it publishes.

    Raises:
        BusyError: another process or thread prepares ``folder``.
    """
    work = _work_path(folder)
    with publisher_lock(folder):
        if not _has_key(work, key):
            remove_work(work, folder)
            work.mkdir()
            replace_file(work / KEY, f"{LAYOUT} {key}".encode())
        for each in [work, *(path for path in work.rglob("*") if path.is_dir())]:
            remove_new(each)
        try:
            yield work
        except DataError:
            remove_work(work, folder)
            raise
        remove_work(work, folder)


def remove_finished(folder: Path, key: str) -> None:
    """Removes what a run left when it was killed after publishing, unless another process prepares ``folder``.

    The unfinished work of other inputs is kept.
    """
    work = _work_path(folder)
    if _is_finished(work, key) or lock_path(folder).exists():
        with suppress(BusyError, OSError), publisher_lock(folder):  # the folder above may be read-only
            if _is_finished(work, key):  # still
                remove_work(work, folder)


def publish(work: Path, folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Publishes the prepared folder in ``work``, which is removed, as ``folder``. Call it with the lock of ``folder``.

    Args:
        check: raises an error if the existing ``folder`` may not be replaced.
    """
    if folder.exists():
        check()
    sync_tree(work / PREPARED)  # here, since work is kept if the disk is full
    with _taken(work, folder) as taken:
        new = taken / PREPARED
        prepared = new.stat().st_ino
        try:
            replace(new, folder)
        except BaseException:
            if new.exists() and new.stat().st_ino == prepared:  # not published: another run publishes it
                taken.rename(work)
            raise


def _is_finished(work: Path, key: str) -> bool:
    """Returns whether there is work of ``key``, which is published, or work without a key, which has not begun."""
    return work.exists() and (_has_key(work, key) or not (work / KEY).exists())


def _work_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"


def _has_key(work: Path, key: str) -> bool:
    return (work / KEY).is_file() and (work / KEY).read_text() == f"{LAYOUT} {key}"


def remove_work(work: Path, folder: Path) -> None:
    """Removes the work of ``folder``, if there is any, in one step."""
    if work.exists():
        with _taken(work, folder):
            pass


@contextmanager
def _taken(work: Path, folder: Path) -> Iterator[Path]:
    """Renames work, so that no process resumes a part of it, even after a power failure, and removes it afterwards."""
    with new_beside(folder) as taken:
        work.rename(taken)
        sync(folder.parent)
        yield taken
