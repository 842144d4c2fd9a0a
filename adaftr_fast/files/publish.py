"""Whole files and folders that one process at a time replaces, and that readers find in one
version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from adaftr_fast.errors import BusyError
from adaftr_fast.files.locks import writer_lock
from adaftr_fast.files.whole import aside_path, followed, remove, remove_new, replacing, restore

T = TypeVar("T")
Identity = tuple[int, int, int]
ATTEMPTS = 20  # of a reader, each of which met a writer


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yields the path of a new file or folder, which replaces ``target`` as ``replacing`` does, as
    its only writer.

    Raises:
        BusyError: another process or thread writes ``target``.
        OSError: ``target`` cannot be written.
    """
    with publisher_lock(followed(target)), replacing(target) as new:
        yield new


@contextmanager
def publisher_lock(target: Path) -> Iterator[None]:
    """Makes this process the only one that publishes ``target``, which is not a link, as
    ``writer_lock`` does.

    What killed processes left beside ``target`` is removed.
    """
    with writer_lock(lock_path(target), target) as is_alone:
        if is_alone:
            restore(target)
            remove_new(target.parent, target.name)
            remove(aside_path(target))
        yield


def lock_path(target: Path) -> Path:
    """Returns the lock file of ``publisher_lock``."""
    return target.with_name(f".{target.name}.lock")


def read_published(target: Path, read: Callable[[Path], T]) -> T:
    """Returns ``read(folder)`` of a folder that may be replaced meanwhile, so that all its files
    are of one version.

    Args:
        target: the folder, which need not exist.
        read: reads the folder; called again if it may have read two versions.

    Raises:
        BusyError: the folder was replaced during each of many attempts.
    """
    target = followed(target)
    for attempt in range(1, ATTEMPTS + 1):
        found = _present(target)
        try:
            content = read(found[0])
        except Exception:
            if _present(target) == found or attempt == ATTEMPTS:
                raise
        else:
            if _present(target) == found:
                return content
    raise BusyError(f"{target}: replaced {ATTEMPTS} times while it was read")


def version(target: Path) -> tuple[Path, Identity | None]:
    """Returns a value that changes when ``publishing`` replaces the folder ``target``; it takes a
    call of stat.
    """
    return _present(followed(target))


def _present(target: Path) -> tuple[Path, Identity | None]:
    """Returns where the folder is, at ``target`` or where ``replace`` has moved it, and its
    identity.
    """
    # it may move between two looks
    for path in (target, aside_path(target), target, aside_path(target)):
        if (identity := _identity(path)) is not None:
            return path, identity
    return target, None


def _identity(path: Path) -> Identity | None:
    """Returns values that change when another folder gets the name ``path``."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns
