"""Atomic and durable file writes."""

import errno
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NEW = ".new-"  # in the names of the hidden files of ``writing_file``


def replace_file(path: Path, content: bytes) -> None:
    """Writes or replaces ``path`` atomically: after a crash or power failure it holds the old or the new content.

    A symbolic link stays, and its target is written.
    """
    path = followed(path)
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            temporary.write_bytes(content)
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Yields where to write a new file, which gets the name ``path`` after the block, flushed to disk.

    Several processes, on several machines, may write the same file at once. A killed process leaves a hidden file.
    """
    new = path.with_name(f".{path.name}{NEW}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with naming(path):
            yield new
            sync(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Names ``path`` in an error of the block that says that it cannot grow: a full disk, a quota, a limit of its size.

    Other errors may be those of a file that the block reads.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def check_replaceable(path: Path) -> None:
    """Raises OSError if ``path``, which is no link, is a device, a pipe or a socket: a rename would replace it."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "expected a file or a folder, found a device, a pipe or a socket", str(path))


def remove_temporaries(path: Path) -> None:
    """Removes what killed processes left of ``replace_file(path)``. Call it while no other process writes ``path``."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"\d+")
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        if pattern.fullmatch(entry.name):
            entry.unlink()


def make_folder(folder: Path) -> list[Path]:
    """Creates a folder with its parents, unless it exists. Returns the folders created, the innermost first."""
    missing = list(takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync(each.parent)
    folder.mkdir(exist_ok=True)  # raises FileExistsError if it is a file
    return missing


def followed(path: Path) -> Path:
    """Returns the target of a symbolic link, also of one that does not exist yet; any other path unchanged."""
    return path.resolve() if path.is_symlink() else path


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8.

    JSON may hold half of a surrogate pair, and Python reads one for each byte of a file name that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str, key: str) -> None:
    """Raises ValueError unless ``name``, the value of ``key`` in a file, names an entry of the file's own folder."""
    if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name or not is_unicode(name):
        raise ValueError(f"{key}: expected the name of a file in the same folder, got {name!r}")


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CRC32:
    """The CRC-32 of bytes, with the methods of hashlib's objects.

    It tells accidental damage as SHA-256 does, but not a forgery. It takes a quarter of SHA-256's time on CPUs with
    instructions for that, and a tenth on others.
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
