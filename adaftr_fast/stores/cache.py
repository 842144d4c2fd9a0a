"""The folder on this machine for copies of what stores hold, and its bound."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from adaftr_fast.errors import StoreError

FOLDER, LIMIT = "ADAFTR_FAST_CACHE", "ADAFTR_FAST_CACHE_GB"  # environment variables
DEFAULT_GB = 20.0
IN_USE_SECONDS = 3600.0  # copies that were used since stay, whatever their size
PIECES, COPIES, WRITING = "pieces", "copies", "writing"
CHECKSUM = 4  # bytes before the content of a piece
KEPT = 0.9  # share of the bound that stays when it is reached
STEP = 0.01  # share of the bound that a process writes between two looks at the folder


def cache_folder() -> Path:
    """Returns the folder: ``ADAFTR_FAST_CACHE``, or adaftr_fast in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get(FOLDER):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaftr_fast"


def cache_bytes() -> float:
    """Returns the bound, ``ADAFTR_FAST_CACHE_GB`` x 10^9 bytes. Raises StoreError if it is no number from 0 on."""
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
    """Pieces of objects that never change, each a file with its CRC-32. Processes may share the folder.

    The least recently used pieces and copies are removed when all of them together exceed the bound.
    """

    def __init__(self) -> None:
        self.folder = cache_folder()
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
        content, bound = read(), cache_bytes()
        try:
            with self._lock:
                self._put(path, content, bound)
        except OSError as error:  # the disk is full, or read-only
            warnings.warn(f"{self.folder}: {error}: reads again what it could have kept", RuntimeWarning, stacklevel=2)
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
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            new.write_bytes(zlib.crc32(content).to_bytes(CHECKSUM, "big") + content)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        self._written += len(content)


def shrink(folder: Path, bound: float) -> None:
    """Removes the least recently used pieces and copies until 90 % of ``bound`` bytes remain, if there are more."""
    entries = []
    for path in [*(folder / PIECES).glob("*/*"), *(folder / COPIES).glob("*/*")]:
        with suppress(OSError):
            entries.append((path.stat().st_mtime, _size(path), path))
    total, now = sum(size for _, size, _ in entries), time.time()
    for used, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= KEPT * bound:
            return
        if path.is_dir():
            if now - used < IN_USE_SECONDS:
                continue
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        total -= size


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size
