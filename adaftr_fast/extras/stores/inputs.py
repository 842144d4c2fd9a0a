"""Copies of files and folders of a store on this machine, one for each version."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import BusyError, StoreError
from adaftr_fast.extras.stores.filesystems import filesystem, read_if_any, store_errors
from adaftr_fast.files.json import from_json, loads
from adaftr_fast.files.publish import publishing
from adaftr_fast.files.whole import sha256

POINTER = "published.json"
VERSION = ("size", "mtime", "created", "LastModified", "last_modified", "updated", "ETag", "etag")
COPIES = "copies"
POLL_SECONDS = 0.2
ATTEMPTS = 5  # of a copy, each of which met a writer


@dataclass(frozen=True)
class Published:
    """A file of a published folder.

    Attributes:
        object: the path of its content in the folder. No object is written twice.
        size: its size in bytes.
        sha256: that of its content.
    """

    object: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Remote:
    """A file to copy: its path in the store, size, and the sha256 if the store has published it."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """What a URL names now.

    Attributes:
        version: a text that changes with the content.
        files: the files by their paths below the URL; "" is the URL itself.
    """

    version: str
    files: dict[str, Remote]

    @property
    def is_published(self) -> bool:
        """Whether no object changes any more."""
        return all(each.sha256 is not None for each in self.files.values())


def cache_folder() -> Path:
    """Returns ``ADAFTR_FAST_CACHE``, or adaftr_fast in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("ADAFTR_FAST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaftr_fast"


def place(kind: str, url: str, version: str = "") -> Path:
    """Returns where the cache keeps what belongs to a URL: a path of the URL's name, alone in a
    folder.
    """
    digest = hashlib.sha256(f"{url} {version}".encode()).hexdigest()[:20]
    return cache_folder() / kind / digest / PurePosixPath(url).name


def read_pointer(fs: Any, folder: str) -> tuple[bytes, dict[str, Published]] | None:
    """Returns the content of ``published.json`` and the files that it names; None without one.

    Raises:
        StoreError: it is damaged.
    """
    content = read_if_any(fs, f"{folder}/{POINTER}")
    if content is None:
        return None
    try:
        return content, from_json(dict[str, Published], loads(content.decode()))
    except ValueError as error:
        raise StoreError(f"{folder}/{POINTER}: damaged: {error}") from error


def local_copy(url: str) -> Path:
    """Returns a copy of the file or folder that a URL names, in the cache.

    It is made once for each version: the published one, or else size, time and tag of the objects.

    Raises:
        StoreError: there is no such file or folder, it is damaged, or the store cannot be read.
        BusyError: it was replaced during each of several copies.
        MissingPackageError: as ``filesystem``.
    """
    fs, path = filesystem(url)
    for _ in range(ATTEMPTS):
        with store_errors(url):
            found = find(fs, path)
            if not found.files:
                raise StoreError(f"{url}: no such file or folder")
            copy = place(COPIES, url, found.version)
            try:
                _fill(copy, fs, found)
            except FileNotFoundError as error:
                if find(fs, path).version == found.version:
                    raise StoreError(f"{url}: damaged: an object is gone: {error}") from error
                continue
            if found.is_published or find(fs, path).version == found.version:
                return copy
    raise BusyError(f"{url}: was replaced during each of {ATTEMPTS} copies")


def find(fs: Any, path: str) -> Found:
    """Returns what a path names: a file, a part of a published folder, or a folder of objects."""
    if fs.isfile(path):
        info = fs.info(path)
        return Found(_version(info), {"": Remote(path, info["size"])})
    root = path
    while root.strip("/"):
        if (pointer := read_pointer(fs, root)) is not None:
            return _part(root, path, *pointer)
        root = root.rpartition("/")[0]
    listed = sorted(fs.find(path, detail=True).items())
    files = {name.removeprefix(f"{path}/"): Remote(name, info["size"]) for name, info in listed}
    return Found(str([(name, _version(info)) for name, info in listed]), files)


def _version(info: dict[str, Any]) -> str:
    """Returns size, time and tag of an object; what else filesystems tell may change by reading."""
    return str([info.get(key) for key in VERSION])


def _part(root: str, path: str, content: bytes, files: dict[str, Published]) -> Found:
    """Returns what a path below a published folder names."""
    below = path.removeprefix(root).strip("/")
    found = {}
    for name, each in files.items():
        if name == below or name.startswith(f"{below}/" if below else ""):
            remote = Remote(f"{root}/{each.object}", each.size, each.sha256)
            found[name.removeprefix(below).strip("/")] = remote
    return Found(content.decode(), found)


def _fill(copy: Path, fs: Any, found: Found) -> None:
    """Downloads the files, unless there is a copy or another process makes it."""
    while not copy.exists():
        try:
            with publishing(copy) as new:
                _download(new, fs, found.files)
        except BusyError:
            time.sleep(POLL_SECONDS)


def _download(new: Path, fs: Any, files: dict[str, Remote]) -> None:
    total = sum(each.size for each in files.values())
    with progress_bar(total=total, unit="B", unit_scale=True, desc="download", leave=False) as bar:
        for name, each in files.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(each.path, str(target))
            size = target.stat().st_size
            if size != each.size or each.sha256 not in (None, sha256(target)):
                raise StoreError(f"{each.path}: damaged: its content is not the published one")
            bar.update(size)
