"""One writer at a time: locks of run folders, prepared folders, exported models and files of
scores.

A lock is a POSIX record lock on a small file. The operating system releases it when the process
ends, however that happens, and NFS forwards it to the server. A forked process does not inherit it.
The file says who holds the lock, and is removed with it. Readers need no lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from adaftr_fast.errors import BusyError
from adaftr_fast.files.json import loads
from adaftr_fast.files.whole import followed, make_folder, remove_new

LOCK = ".lock"  # in a folder that is written in place
COMMAND_LENGTH = 500
TAKEN = (errno.EACCES, errno.EAGAIN)
# after which a file server has released the lock of a machine that is gone; NFS takes 90 seconds
LOST_SECONDS = 120.0
POLL_SECONDS = 0.5
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def writing_folder(folder: Path, *files: str, wait: float = 0.0) -> Iterator[None]:
    """Makes this process the only writer of a folder that is written in place, during the block.

    The folder is created, and removed again if the block leaves nothing in it.

    Args:
        folder: the folder.
        files: the files that the process replaces in it. What killed processes left of them is
            removed.
        wait: how many seconds to wait for another writer to end.

    Raises:
        BusyError: another process or thread writes the folder.
        OSError: the folder cannot be written.
    """
    folder = followed(folder)
    with writer_lock(folder / LOCK, folder, wait) as is_alone:
        for path in (folder / name for name in files if is_alone):
            remove_new(path.parent, path.name)
        yield


@contextmanager
def writer_lock(path: Path, target: Path | str, wait: float = 0.0) -> Iterator[bool]:
    """Holds the lock file ``path`` during the block.

    A thread may hold a lock several times. Folders that are created for ``path`` are removed
    afterwards if they are empty.

    Args:
        path: the lock file, which is created and removed.
        target: what the lock protects, for the error message.
        wait: how many seconds to wait for another process or thread that holds it.

    Yields:
        Whether no other writer of ``target`` exists: False if this thread held the lock before, or
            if the file system has no locks.

    Raises:
        BusyError: another process or thread holds the lock.
        OSError: the lock file cannot be created.
    """
    path = Path(os.path.realpath(path))
    is_alone, created = _take_within(wait, path, target)
    try:
        yield is_alone
    finally:
        _release(path)
        with suppress(OSError):  # not empty
            for folder in created:
                folder.rmdir()


@dataclass
class _Held:
    """A lock of this process. A forked process has a copy of it, but not the lock."""

    descriptor: int
    process: int
    thread: int
    depth: int = 1


_locks: dict[Path, _Held] = {}
_mutex = threading.Lock()


def _take_within(seconds: float, path: Path, target: Path | str) -> tuple[bool, list[Path]]:
    end = time.monotonic() + seconds
    while True:
        try:
            return _take(path, target)
        except BusyError:
            if time.monotonic() >= end:
                raise
        time.sleep(POLL_SECONDS)


def _take(path: Path, target: Path | str) -> tuple[bool, list[Path]]:
    """Returns whether there is no other writer, and the folders created."""
    with _mutex:
        held = _locks.get(path)
        if held is not None and held.process == os.getpid():
            if held.thread != threading.get_ident():
                raise BusyError(
                    f"{target}: another thread of this process is writing it; name another place"
                )
            held.depth += 1
            return False, []
        created = make_folder(path.parent)
        descriptor, is_alone = _open_locked(path, target)
        _locks[path] = _Held(descriptor, os.getpid(), threading.get_ident())
        return is_alone, created


def _release(path: Path) -> None:
    with _mutex:
        held = _locks[path]
        if held.process != os.getpid():
            return
        held.depth -= 1
        if held.depth:
            return
        del _locks[path]
        if _is_at(held.descriptor, path):
            with suppress(OSError):
                path.unlink()  # before the lock ends, so the file of the next holder stays
        os.close(held.descriptor)


def _open_locked(path: Path, target: Path | str) -> tuple[int, bool]:
    """Opens and locks the file. Returns its descriptor and whether it could be locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the former holder has removed the empty folder
            make_folder(path.parent)
            continue
        try:
            is_locked = _lock(descriptor, target)
            if not is_locked or _is_at(descriptor, path):
                with suppress(OSError):  # a full disk
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
                return descriptor, is_locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the former holder has removed the file


def _lock(descriptor: int, target: Path | str) -> bool:
    """Locks the file; returns False if the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise BusyError(
                f"{target}: {_holder(descriptor)} is writing it; wait, or name another place"
            ) from error
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(
            f"{target}: its file system has no locks ({error}); do not write it by two processes",
            RuntimeWarning,
            stacklevel=6,
        )
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _this_process() -> dict[str, object]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:COMMAND_LENGTH]
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _holder(descriptor: int) -> str:
    """Describes the process that holds the lock, as far as it has written about itself."""
    try:
        about = loads(os.pread(descriptor, 4 * COMMAND_LENGTH, 0).decode())
        return (
            f"process {about['pid']} on {about['host']} (`{about['command']}`, since "
            f"{about['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
