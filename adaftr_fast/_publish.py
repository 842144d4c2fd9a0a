"""Replaces whole files and folders in one step, which survives a kill and a power failure at any point.

A new file or folder is written beside its place, flushed to disk, and exchanged with the former one. Readers find
either of the two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from adaftr_fast._files import check_replaceable, followed, naming, sync
from adaftr_fast._locks import writer_lock
from adaftr_fast.errors import BusyError

T = TypeVar("T")
Identity = tuple[int, int, int]
ATTEMPTS = 20  # of a reader, each of which met a writer
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yields the path of a new file or folder, which replaces ``target`` after the block, or is removed on an error.

    A symbolic link stays, and its target is replaced. What killed processes left beside ``target`` is removed.

    Raises:
        BusyError: another process or thread writes ``target``.
        OSError: ``target`` cannot be written.
    """
    target = followed(target)
    check_replaceable(target)
    with publisher_lock(target) as is_alone:
        if is_alone:
            restore(aside_path(target), target)
            remove_leftovers(target)
        new = target.with_name(f".{target.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with naming(target):
                yield new
            replace(new, target, aside_path(target))
        finally:
            remove(new)


@contextmanager
def publisher_lock(target: Path) -> Iterator[bool]:
    """Makes this process the only one that publishes ``target``, which is no link; yields as ``writer_lock``."""
    with writer_lock(lock_path(target), target) as is_alone:
        yield is_alone


def lock_path(target: Path) -> Path:
    """Returns the lock file of ``publisher_lock``."""
    return target.with_name(f".{target.name}.lock")


def read_published(target: Path, read: Callable[[Path], T]) -> T:
    """Returns ``read(folder)`` of a folder that may be replaced meanwhile, so that all its files are of one version.

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
    """Returns a value that changes when ``publishing`` replaces the folder ``target``; it takes a call of stat."""
    return _present(followed(target))


def replace(new: Path, target: Path, aside: Path) -> None:
    """Renames a file or folder to ``target``, durably, and removes the former one.

    Args:
        new: the new file or folder, on the same file system. A killed process may leave the former folder there.
        target: its place; no link.
        aside: a place for the former folder, for file systems that cannot exchange two folders. Only there, a killed
            process may leave ``target`` absent, for ``restore``.
    """
    sync_tree(new)
    if not (target.is_dir() and new.is_dir()):
        new.replace(target)
    elif not _exchange(new, target):
        remove(aside)
        target.rename(aside)
        try:
            sync(target.parent)
            new.rename(target)
        except BaseException:
            restore(aside, target)
            raise
    sync(target.parent)  # first, since the former folder may not lose a file while a power failure could restore it
    remove(new)
    remove(aside)


def restore(aside: Path, target: Path) -> None:
    """Restores the folder that a killed ``replace`` has moved to ``aside``."""
    if aside.exists() and not target.exists():
        aside.rename(target)
        sync(target.parent)


def remove_leftovers(target: Path) -> None:
    """Removes what killed processes left of ``publishing(target)``. Call it with the lock of ``target``."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(new-[\w-]+|replaced)")
    for entry in target.parent.iterdir():
        if pattern.fullmatch(entry.name):
            remove(entry)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that it holds; what is absent or cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync_tree(path: Path) -> None:
    """Flushes a file, or a folder with all that it holds, to disk. What another process removes meanwhile is left out.

    Symbolic links in the folder are not followed.
    """
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                with suppress(FileNotFoundError):
                    sync_tree(entry)
    sync(path)


def aside_path(target: Path) -> Path:
    """Returns where ``publishing`` keeps the former folder on a file system that cannot exchange two folders."""
    return target.with_name(f".{target.name}.replaced")


def _exchange(new: Path, target: Path) -> bool:
    """Exchanges the names of two folders in one step; returns False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new), None, str(target))


def _present(target: Path) -> tuple[Path, Identity | None]:
    """Returns where the folder is, at ``target`` or where ``replace`` has moved it, and its identity."""
    for path in (target, aside_path(target), target, aside_path(target)):  # it may move between two looks
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
