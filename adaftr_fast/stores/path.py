"""Paths in object stores, with those methods of ``pathlib.Path`` that reading needs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from adaftr_fast._files import AnyPath, is_unicode
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores.filesystems import SCHEMES, filesystem, retried

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


LOST_SLASH = re.compile(rf"({'|'.join(['file', *SCHEMES])}):/[^/]")
# options that a URL may not have
SECRETS = {"access_key", "secret_key", "session_token", "access_token"}
IN_HOST = ("hdfs", "viewfs")  # schemes whose host is a server; that of others is the bucket
BLOCK = 8 << 20  # bytes of a request where the reader does not choose


class Stat(NamedTuple):
    """Size in bytes and time of the last change of an object, named as in ``os.stat_result``."""

    st_size: int
    st_mtime_ns: int


class StorePath:
    """A file or folder of a store.

    Args:
        place: ``scheme://host``, and options such as ``?region=eu-west-1`` if the URL has any.
        key: the path for pyarrow's filesystem of ``place``, for example "bucket/folder/file".
    """

    def __init__(self, place: str, key: str) -> None:
        self.place = place
        self.key = key.rstrip("/")

    @property
    def url(self) -> str:
        """The text by which messages and records name it."""
        host, question, options = self.place.partition("?")
        scheme = host.partition("://")[0]
        start = host if scheme in IN_HOST else f"{scheme}://"
        return f"{start}{self.key}{question}{options}"

    @property
    def filesystem(self) -> FileSystem:
        """The filesystem of pyarrow. Raises StoreError if there is none."""
        return filesystem(self.place)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> StorePath:
        """The folder that holds it."""
        return StorePath(self.place, str(PurePosixPath(self.key).parent))

    def joinpath(self, *names: str) -> StorePath:
        """Returns a path below it."""
        return StorePath(self.place, "/".join([self.key, *names]))

    def __truediv__(self, name: str) -> StorePath:
        return self.joinpath(name)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"StorePath({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and (self.place, self.key) == (other.place, other.key)

    def __hash__(self) -> int:
        return hash((self.place, self.key))

    @property
    def is_top(self) -> bool:
        """Whether it is a bucket, or the root of a file system."""
        return len(PurePosixPath(self.key).parts) < 2

    def info(self) -> FileInfo:
        """Returns pyarrow's description: type, size, time of the last change."""
        return retried(self.url, lambda: self.filesystem.get_file_info(self.key))

    def exists(self) -> bool:
        """Returns whether there is a file or folder of this name."""
        return self.info().type.name != "NotFound"

    def is_file(self) -> bool:
        """Returns whether there is a file of this name."""
        return self.info().type.name == "File"

    def is_dir(self) -> bool:
        """Returns whether there is a folder of this name, or objects below it."""
        return self.info().type.name == "Directory"

    def stat(self) -> Stat:
        """Returns size and time of the last change of a file. Raises FileNotFoundError."""
        info = self.info()
        if info.type.name != "File":
            raise FileNotFoundError(2, "no such file", self.url)
        return Stat(info.size, info.mtime_ns or 0)

    def absolute(self) -> StorePath:
        """Returns the path itself, which does not depend on the current folder."""
        return self

    def files(self) -> list[StorePath]:
        """Returns the files below a folder that ``pyarrow.dataset`` reads, in its order, by one
        listing.

        These are all but those whose name, or that of a folder on the way, begins with "." or "_".
        Raises StoreError.
        """
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.key, recursive=True)
        infos = retried(self.url, lambda: self.filesystem.get_file_info(selector))
        found: list[StorePath] = []
        for info in sorted(infos, key=attrgetter("path")):
            name = info.path.removeprefix(f"{self.key}/")
            if info.type.name == "File" and not re.search(r"(^|/)[._]", name):
                found.append(KnownFile(self / name, Stat(info.size, info.mtime_ns or 0)))
        return found

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:
        """Opens a file to read bytes, from any position; with ``buffering=0`` each read is one
        request.

        Raises:
            FileNotFoundError, StoreError: there is no such file, or it cannot be read.
        """
        file = RangeFile(self.read_range, self.stat().st_size)
        return cast(BinaryIO, file) if buffering == 0 else io.BufferedReader(file, BLOCK)

    def read_range(self, start: int, end: int | None) -> bytes:
        """Returns the bytes from ``start`` to ``end`` of a file, or to its end. Raises
        FileNotFoundError, StoreError.
        """

        def read() -> bytes:
            with self.filesystem.open_input_file(self.key) as file:
                size = (file.size() if end is None else end) - start
                content = file.read_at(size, start)
            if len(content) != size:
                raise OSError(f"read {len(content)} of {size} bytes from {start} on")
            return bytes(content)

        return retried(self.url, read)

    def read_bytes(self) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError, StoreError."""
        return self.read_range(0, None)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content of a text file. Raises FileNotFoundError, StoreError."""
        return self.read_bytes().decode(encoding)


class KnownFile(StorePath):
    """A file whose size and time are known, from a list or a listing of its folder."""

    def __init__(self, path: StorePath, stat: Stat) -> None:
        super().__init__(path.place, path.key)
        self._stat = stat

    def stat(self) -> Stat:
        """Returns size and time of the last change in the list."""
        return self._stat


class RangeFile(io.RawIOBase):
    """A file for reading, each read by one call.

    Args:
        read: returns the content from a position to another one.
        size: the size in bytes.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read = read
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer``, unless the file ends before: pyarrow takes fewer bytes for the end of
        the file.
        """
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._size)
        if end <= self._position:
            return 0
        content = self._read(self._position, end)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)


def _hidden(url: str) -> str:
    """Returns a URL without keys."""
    return re.sub("(:/+).*@", r"\1…@", url).partition("?")[0]  # a key may hold a slash


def as_path(path: str | os.PathLike[str] | AnyPath) -> Path | StorePath:
    """Returns the path of a URL, or a local path of any other text.

    Args:
        path: ``s3://``, ``gs://``, ``hdfs://`` or ``file://``, or a local path.

    Raises:
        StoreError: the scheme is none of these, or the URL names no file or folder, or holds keys,
            or lacks a slash.
        DataError: the path is not UTF-8, which the libraries that read and write files refuse.
    """
    if isinstance(path, StorePath):
        return path
    text = os.fspath(cast("str | os.PathLike[str]", path))
    if not is_unicode(text):
        raise DataError(f"{text!a}: expected a path in UTF-8")
    if LOST_SLASH.match(text):
        raise StoreError(
            f"{_hidden(text)}: expected a URL with two slashes; pathlib.Path drops one of them, text "
            "does not"
        )
    if "://" not in text:
        return path if isinstance(path, Path) else Path(text)
    try:
        url = urlsplit(text, allow_fragments=False)  # names may hold a "#"
    except ValueError:  # whose text may hold keys
        raise StoreError(f"{_hidden(text)}: expected the name of a bucket or a host") from None
    if url.scheme == "file":
        return Path(unquote(url.path))
    if url.scheme not in SCHEMES:
        raise StoreError(
            f"{_hidden(text)}: expected a local path or one of "
            f"{', '.join(f'{each}://' for each in ('file', *SCHEMES))}"
        )
    options = {name for name, _ in parse_qsl(url.query)}
    if "@" in url.netloc or SECRETS & options:
        raise StoreError(
            f"{_hidden(text)}: keys in a URL would be recorded; set them in the environment"
        )
    key = url.path if url.scheme in IN_HOST else f"{url.netloc}{url.path}"
    if not key.strip("/"):
        raise StoreError(f"{text}: expected a bucket or a folder")
    return StorePath(f"{url.scheme}://{url.netloc}{f'?{url.query}' if url.query else ''}", key)


def in_store(path: AnyPath) -> bool:
    """Returns whether a path is in a store, whose errors may be of the moment."""
    return isinstance(path, StorePath)


def parts_below(path: AnyPath, folder: AnyPath) -> tuple[str, ...] | None:
    """Returns the names that lead from one path in a store to another one; None if
    there are none.
    """
    if not (
        isinstance(path, StorePath) and isinstance(folder, StorePath) and path.place == folder.place
    ):
        return None
    key = PurePosixPath(path.key)
    return key.relative_to(folder.key).parts if key.is_relative_to(folder.key) else None


def arrow_path(path: AnyPath) -> tuple[FileSystem, str]:
    """Returns the filesystem of pyarrow that holds a path, and the path for it."""
    from pyarrow.fs import LocalFileSystem

    return (
        (path.filesystem, path.key)
        if isinstance(path, StorePath)
        else (LocalFileSystem(), str(path))
    )


def files_below(folder: AnyPath) -> list[AnyPath]:
    """Returns the files below a folder that ``pyarrow.dataset`` reads, in its order, without hidden
    ones.

    Raises:
        StoreError: the store cannot be read.
        pyarrow.ArrowException, OSError: a local folder cannot be read.
    """
    if isinstance(folder, StorePath):
        return [*folder.files()]
    import pyarrow as pa
    from pyarrow.dataset import dataset

    # with a schema, it reads no file
    found = dataset(folder, schema=pa.schema([]), format="parquet")
    try:
        return [Path(file) for file in found.files]
    except UnicodeDecodeError as error:
        raise OSError(f"the name of a file is not UTF-8: {error.object!r}") from error
