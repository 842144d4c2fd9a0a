"""The folder on this machine for copies of what stores hold, its bound, and copies of whole
folders.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from adaftr_fast._files import AnyPath, new_beside, remove
from adaftr_fast._locks import LOCK, writer_lock
from adaftr_fast._publish import publishing
from adaftr_fast.errors import BusyError, StoreError
from adaftr_fast.stores.path import StorePath, as_path
from adaftr_fast.stores.published import (
    PublishedFile,
    PublishedFolder,
    State,
    download,
    open_folder,
    read_state,
    reopened,
    transfer_bar,
)

FOLDER, LIMIT = "ADAFTR_FAST_CACHE", "ADAFTR_FAST_CACHE_GB"  # environment variables
DEFAULT_GB = 20.0
IN_USE_SECONDS = 3600.0  # copies that were used since stay, whatever their size
PIECES = "pieces"
COPIES = "copies"
WRITING = "writing"
CHECKSUM = 4  # bytes before the content of a piece
KEPT = 0.9  # share of the bound that stays when it is reached
STEP = 0.01  # share of the bound that a process writes between two looks at the folder
POLL_SECONDS = 0.2
ATTEMPTS = 5  # of a download, each of which met a writer


def cache_folder() -> Path:
    """Returns the folder: ``ADAFTR_FAST_CACHE``, or adaftr_fast in ``XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    if own := os.environ.get(FOLDER):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaftr_fast"


def cache_bytes() -> float:
    """Returns the bound, ``ADAFTR_FAST_CACHE_GB`` x 10^9 bytes. Raises StoreError if it is not a
    number from 0 on.
    """
    text = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0.0:
        raise StoreError(f"{LIMIT}: expected a number of gigabytes, got {text!r}")
    return 1e9 * gigabytes


def short_digest(text: str) -> str:
    """Returns 20 hexadecimal digits that stand for a text, for the names of files."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Pieces:
    """Pieces of objects that never change, each a file with its CRC-32. Processes may share the
    folder.

    The least recently used pieces and copies are removed when all of them together exceed the
    bound.

    Args:
        folder: the folder of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written = 0.0  # since the bound was last checked
        self._lock = threading.Lock()

    def get(self, key: str, read: Callable[[], bytes]) -> bytes:
        """Returns the content of the piece ``key``, from its file or from ``read()``."""
        path = self.folder / PIECES / key[:2] / key
        with suppress(OSError):
            content = path.read_bytes()
            if zlib.crc32(content[CHECKSUM:]).to_bytes(CHECKSUM, "big") == content[:CHECKSUM]:
                os.utime(path)
                return content[CHECKSUM:]
        content = read()
        bound = cache_bytes()
        try:
            with self._lock:
                self._put(path, content, bound)
        except OSError as error:  # the disk is full, or read-only
            warnings.warn(
                f"{self.folder}: {error}: reads again what it could have kept",
                RuntimeWarning,
                stacklevel=2,
            )
        return content

    def forget(self, key: str) -> None:
        """Removes the piece ``key``."""
        (self.folder / PIECES / key[:2] / key).unlink(missing_ok=True)

    def _put(self, path: Path, content: bytes, bound: float) -> None:
        if len(content) > bound:
            return
        if self._written == 0.0 or self._written + len(content) > STEP * bound:
            shrink(self.folder, bound - len(content))
            self._written = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_beside(path) as new:
            new.write_bytes(zlib.crc32(content).to_bytes(CHECKSUM, "big") + content)
            new.replace(path)  # not flushed to disk: a torn piece has another checksum
        self._written += len(content)


def shrink(folder: Path, bound: float) -> None:
    """Removes what was used least recently until 90 % of ``bound`` bytes remain, if there are more.

    These are pieces, copies, and what killed commands have left of their outputs. Outputs that a
    process writes now do not count.
    """
    entries = []
    works = [path for path in (folder / WRITING).glob("*") if not _is_written(path)]
    for path in [*(folder / PIECES).glob("*/*"), *(folder / COPIES).glob("*/*"), *works]:
        with suppress(OSError):
            entries.append((*_use_and_size(path), path))
    total = sum(size for _, size, _ in entries)
    now = time.time()
    for used, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= KEPT * bound:
            return
        if path.is_dir() and now - used < IN_USE_SECONDS:
            continue
        if path.parent.name == WRITING:
            remove_output(path)
        else:
            remove(path)
        total -= size


def _is_written(output: Path) -> bool:
    """Returns whether a process writes a folder of ``WRITING``."""
    try:
        with writer_lock(output / LOCK, output) as is_alone:
            return not is_alone
    except (BusyError, OSError):
        return True


def remove_output(output: Path) -> None:
    """Removes a folder of ``WRITING``, unless a process has begun to write it."""
    with suppress(BusyError, OSError), writer_lock(output / LOCK, output) as is_alone:
        if is_alone:
            clear(output)
    with suppress(OSError):
        output.rmdir()


def clear(output: Path) -> None:
    """Removes all that a folder of ``WRITING`` holds but its lock."""
    for entry in output.iterdir():
        if entry.name != LOCK:
            remove(entry)


def _use_and_size(path: Path) -> tuple[float, int]:
    """Returns the time of the last change and the size; of a folder of ``WRITING``, the time is
    that of its files, since locks change it.
    """
    inside = [(each.name, each.stat()) for each in path.rglob("*")]
    used = path.stat().st_mtime
    if path.parent.name == WRITING:
        used = max((stat.st_mtime for name, stat in inside if name != LOCK), default=used)
    return used, sum(stat.st_size for _, stat in inside) or path.stat().st_size


def local_copy(path: str | AnyPath) -> Path:
    """Returns a local folder with the content of a published folder of a store; a local path
    unchanged.

    It is downloaded once for each state of the folder, and its checksums are compared then. If the
    folder is replaced meanwhile, its new state is downloaded.

    Raises:
        PermissionError: the store does not tell whether anything is published there.
        StoreError: nothing is published there, the store cannot be read, or a file is damaged.
        BusyError: the folder was replaced during each of several attempts.
    """
    path = as_path(path)
    if isinstance(path, Path):
        return path
    for _ in range(ATTEMPTS):
        opened = open_folder(path)
        if not isinstance(opened, PublishedFolder):
            read_state(path)  # raises PermissionError where the store does not tell
            raise StoreError(f"{path}: expected a folder that a command has published, found none")
        try:
            return _copy(opened)
        # the objects of a state go when the second state after it is published
        except FileNotFoundError as error:
            now = reopened(opened)
            if isinstance(now, PublishedFolder) and now.state == opened.state:
                raise StoreError(f"{path}: damaged: {error}") from error
    raise BusyError(f"{path}: was replaced during each of {ATTEMPTS} downloads")


def _copy(opened: PublishedFolder) -> Path:
    copy = copy_path(opened, opened.state)
    while not copy.is_dir():
        shrink(cache_folder(), cache_bytes())
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with publishing(copy) as new:
                download_all(opened, new)
        except BusyError:  # another process downloads it
            time.sleep(POLL_SECONDS)
    os.utime(copy)
    return copy


def download_all(folder: PublishedFolder, target: Path) -> None:
    """Downloads all files of a published folder to the new local folder ``target``."""
    target.mkdir(parents=True)
    with transfer_bar(
        "download", folder.name, sum(each.size for each in folder.state.files.values())
    ) as bar:
        for name, each in folder.state.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            download(PublishedFile(folder, name), target / name)
            bar.update(each.size)


def copy_path(folder: StorePath, state: State) -> Path:
    """Returns where the copy of a state of a folder lies; its name is the folder's."""
    place = short_digest(f"{folder.place} {folder.key} {state.to_bytes().decode()}")
    return cache_folder() / COPIES / place / folder.name
