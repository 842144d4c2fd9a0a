"""Files and folders that are replaced in one step, which survives a kill and a power failure at any
point.

A new one is written beside its place under a hidden name, flushed to disk, and renamed or, where it
replaces a folder, exchanged with it.
"""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from adaftr_fast.files.json import dumps, from_json, loads

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file as ``replacing`` does."""
    with replacing(path) as new:
        new.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as a file of JSON, as ``replacing`` does."""
    replace_file(path, f"{dumps(value, indent=2)}\n".encode())


def read_json(kind: type[T], path: Path) -> T:
    """Reads a file of JSON as ``from_json`` does. Raises OSError, ValueError."""
    return from_json(kind, loads(path.read_text(encoding="utf-8")))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder, which replaces ``path`` after the block, and is
    removed on an error.

    After a crash or power failure ``path`` holds the former or the new content. A symbolic link
    stays, and its target is replaced. Several processes, on several machines, may write the same
    file at once.

    Raises:
        OSError: ``path`` cannot be written, or is a device, a pipe or a socket, which a rename
            would replace.
    """
    path = followed(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(
            errno.EINVAL,
            "expected a file or a folder, found a device, a pipe or a socket",
            str(path),
        )
    with new_beside(path) as new:
        yield new
        replace(new, path)


@contextmanager
def new_beside(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside ``path`` for a new file or folder. What is there after the block
    is removed.
    """
    new = path.with_name(f".{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with naming(path):
            yield new
    finally:
        remove(new)


def remove_new(folder: Path, *names: str) -> None:
    """Removes what killed processes left of files and folders of these names, or of any, that they
    wrote to ``folder``.

    Call it while no other process writes them.
    """
    named = "|".join(map(re.escape, names)) or ".+"
    pattern = re.compile(rf"\.({named})\.new-[\w-]+")
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        if pattern.fullmatch(entry.name):
            remove(entry)


def replace(new: Path, path: Path) -> None:
    """Renames a file or folder to ``path``, durably.

    Where the file system can exchange two folders, ``new`` then holds the former one. Elsewhere a
    killed process may leave ``path`` absent, for ``restore``.

    Args:
        new: the new file or folder, on the same file system.
        path: its place; no link.
    """
    sync_tree(new)
    if not (path.is_dir() and new.is_dir()):
        os.replace(new, path)
    elif not _exchange(new, path):
        remove(aside_path(path))
        path.rename(aside_path(path))
        try:
            sync(path.parent)
            new.rename(path)
        except BaseException:
            restore(path)
            raise
        sync(path.parent)
        remove(aside_path(path))
    sync(path.parent)  # the new name is on disk before files of the former folder are removed


def restore(path: Path) -> None:
    """Restores the folder that a killed ``replace`` has moved aside."""
    if aside_path(path).exists() and not path.exists():
        aside_path(path).rename(path)
        sync(path.parent)


def aside_path(path: Path) -> Path:
    """Returns where ``replace`` keeps the former folder on a file system that cannot exchange two
    folders.
    """
    return path.with_name(f".{path.name}.replaced")


def _exchange(new: Path, path: Path) -> bool:
    """Exchanges the names of two folders in one step; returns False if the system or the file
    system cannot.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new), None, str(path))


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that it holds; what is absent or cannot be removed
    stays.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Names ``path`` in an error of the block that says that it cannot grow: a full disk, a quota,
    a limit of its size.

    Other errors may be those of a file that the block reads.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def make_folder(folder: Path) -> list[Path]:
    """Creates a folder with its parents, unless it exists. Returns the folders created, the
    innermost first.
    """
    missing = list(takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync(each.parent)
    folder.mkdir(exist_ok=True)  # raises FileExistsError if it is a file
    return missing


def followed(path: Path) -> Path:
    """Returns the target of a symbolic link, also of one that does not exist yet; any other path
    unchanged.
    """
    return path.resolve() if path.is_symlink() else path


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8.

    JSON may hold half of a surrogate pair, and Python reads one for each byte of a file name that
    is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str, key: str) -> None:
    """Raises ValueError unless ``name``, the value of ``key`` in a file, names an entry of the
    file's own folder.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name or not is_unicode(name):
        raise ValueError(f"{key}: expected the name of a file in the same folder, got {name!r}")


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flushes a file, or a folder with all that it holds, to disk. What another process removes
    meanwhile is left out.

    Symbolic links in the folder are not followed.
    """
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                with suppress(FileNotFoundError):
                    sync_tree(entry)
    sync(path)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CRC32:
    """The CRC-32 of bytes, with the methods of hashlib's objects.

    It tells accidental damage as SHA-256 does, but not a forgery. It takes a quarter of SHA-256's
    time on CPUs with instructions for that, and a tenth on others.
    """

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def crc32(path: Path) -> str:
    """Returns the CRC-32 of a file's content in hexadecimal."""
    found = CRC32()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
