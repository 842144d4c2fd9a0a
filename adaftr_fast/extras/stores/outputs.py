"""Outputs in a store: a local folder or file, which is uploaded whole under names of its own, and
then named by one small object.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import BusyError, StoreError
from adaftr_fast.extras.stores.filesystems import filesystem, put, replace, store_errors
from adaftr_fast.extras.stores.inputs import (
    COPIES,
    POINTER,
    Published,
    local_copy,
    place,
    read_pointer,
)
from adaftr_fast.files.json import dumps
from adaftr_fast.files.locks import LOCK, writer_lock
from adaftr_fast.files.whole import remove, sha256

OBJECTS = "objects"
OBJECT = re.compile(rf"{OBJECTS}/[0-9a-f]{{16}}(/|$)")
WRITING = "writing"
SECONDS = 60.0  # between two uploads of a run that goes on
Stat = tuple[int, int, int]


class UploadInterrupt(KeyboardInterrupt):
    """Ctrl-C during an upload, after which the output is kept on this machine."""


@contextmanager
def output_folder(url: str, *, resumes: bool = False) -> Iterator[OutputFolder]:
    """Yields the local folder that becomes ``url`` after the block. It begins with what is
    published there.

    Args:
        url: the folder.
        resumes: whether the folder can be resumed from at any time, so that it is also uploaded
            after an error of the block, such as Ctrl-C.

    Raises:
        BusyError: another process on this machine writes ``url``, or another one has published
            it since the block began.
        StoreError: ``url`` holds other files, or the store fails; the local folder is kept until the
            next command that writes ``url``, and the message names it.
        MissingPackageError: as ``filesystem``.
    """
    with _working(url) as local:
        folder = OutputFolder(url, local)
        folder.begin()
        try:
            yield folder
        except BaseException:
            if resumes:
                folder.upload()
            raise
        folder.upload()
        folder.keep_as_copy()


@contextmanager
def output_file(url: str) -> Iterator[Path]:
    """Yields the path of a new local file, which becomes ``url`` in one step after the block.

    Raises:
        BusyError, StoreError, MissingPackageError: as ``output_folder``.
    """
    fs, path = filesystem(url)
    with _working(url) as local:
        yield local
        above, _, name = path.rpartition("/")
        with _kept(url, local):
            replace(fs, local, f"{above}/.{name}.new-{secrets.token_hex(4)}", path)


@contextmanager
def _working(url: str) -> Iterator[Path]:
    """Yields where an output is written, as the only writer. It is removed after the block, unless
    an upload has failed or was interrupted.
    """
    local = place(WRITING, url)
    with writer_lock(local.parent.with_suffix(LOCK), url):
        remove(local.parent)  # what a killed command has left
        local.parent.mkdir(parents=True)
        try:
            yield local
        except (BusyError, StoreError, UploadInterrupt):
            raise
        except BaseException:
            remove(local.parent)
            raise
        remove(local.parent)


@contextmanager
def _kept(url: str, local: Path) -> Iterator[None]:
    """Names the local output in an error of an upload, or after Ctrl-C."""
    kept = f"until the next command that writes it, the output is {local}"
    try:
        with store_errors(url):
            yield
    except (BusyError, StoreError) as error:
        raise type(error)(f"{error}; {kept}") from error
    except KeyboardInterrupt as error:
        warnings.warn(f"{url}: is not uploaded; {kept}", RuntimeWarning, stacklevel=4)
        raise UploadInterrupt from error


@dataclass
class OutputFolder:
    """A local folder that is published under a URL.

    Attributes:
        url: the URL.
        local: the folder.
    """

    url: str
    local: Path
    _base: bytes | None = None  # the pointer that this writer has read or written last
    _next: bytes | None = None  # the one that it may have written, where the store has failed
    _sent: dict[str, tuple[Stat, Published]] = field(default_factory=dict)
    _at: float = 0.0  # when it was uploaded last

    def begin(self) -> None:
        """Copies what is published. Raises StoreError if the URL holds anything else."""
        fs, path = filesystem(self.url)
        self._at = time.monotonic()
        with store_errors(self.url):
            pointer = read_pointer(fs, path)
            if pointer is None:
                # a killed command has left objects, and published nothing
                if other := [each for each in fs.find(path) if not _is_object(path, each)]:
                    raise StoreError(
                        f"{self.url}: expected nothing or a folder that a command has published, "
                        f"found {other[0]}"
                    )
                return
            shutil.copytree(local_copy(self.url), self.local)
            self._base, files = pointer
            self._check_base()
            for name, stat in _listing(self.local).items():
                if name in files and stat[1] == files[name].size:
                    self._sent[name] = stat, files[name]

    def upload_if_due(self) -> None:
        """Uploads the folder if the last upload ended a minute ago. If the store fails, a warning
        says so, and the next call tries again.
        """
        if time.monotonic() - self._at >= SECONDS:
            try:
                self.upload()
            except StoreError as error:
                warnings.warn(f"{error}; tries again later", RuntimeWarning, stacklevel=2)
                self._at = time.monotonic()

    def upload(self) -> None:
        """Publishes the folder as it is now; files that have not changed keep their objects.

        Raises:
            BusyError: another process has published the URL.
            StoreError: the store fails; what is published stays.
        """
        fs, path = filesystem(self.url)
        with _kept(self.url, self.local):
            self._sent = self._with_objects()
            files = {name: each for name, (_, each) in self._sent.items()}
            content = f"{dumps(files, indent=1)}\n".encode()
            self._check_base()
            if content != (self._base or b"{}\n"):
                with NamedTemporaryFile(dir=self.local.parent) as file:
                    file.write(content)
                    file.flush()
                    new = f"{path}/{OBJECTS}/{secrets.token_hex(8)}"
                    self._next = content
                    replace(fs, Path(file.name), new, f"{path}/{POINTER}")
                self._base = content
                self._check_base()
                # only now: another writer of the same version may be uploading
                self._remove_unnamed()
        self._at = time.monotonic()

    def _check_base(self) -> None:
        """Raises BusyError if another process has published the URL."""
        pointer = read_pointer(*filesystem(self.url))
        found = None if pointer is None else pointer[0]
        if found is not None and found == self._next:
            self._base = found
        if found != self._base:
            raise BusyError(f"{self.url}: another process has published it since this one began")

    def _with_objects(self) -> dict[str, tuple[Stat, Published]]:
        """Uploads the files that have changed under a new name. Returns all files."""
        listing = _listing(self.local)
        changed = {
            name: stat
            for name, stat in listing.items()
            if name not in self._sent or self._sent[name][0] != stat
        }
        version = secrets.token_hex(8)
        total = sum(size for _, size, _ in changed.values())
        sent = {name: self._sent[name] for name in listing if name not in changed}
        with progress_bar(
            total=total, unit="B", unit_scale=True, desc="upload", leave=False
        ) as bar:
            for name, stat in changed.items():
                sent[name] = stat, self._put(name, f"{OBJECTS}/{version}/{name}", stat)
                bar.update(stat[1])
        return dict(sorted(sent.items()))

    def _put(self, name: str, place: str, stat: Stat) -> Published:
        """Uploads a file; of one that grows meanwhile, such as a log of events, a copy."""
        fs, path = filesystem(self.url)
        file = self.local / name
        published = Published(place, stat[1], sha256(file))
        put(fs, file, f"{path}/{place}")
        if _stat(file) == stat:
            return published
        with NamedTemporaryFile(dir=self.local.parent) as new:
            copy = Path(new.name)
            shutil.copyfile(file, copy)
            put(fs, copy, f"{path}/{place}")
            return Published(place, copy.stat().st_size, sha256(copy))

    def _remove_unnamed(self) -> None:
        """Removes the objects of earlier versions, and those that killed commands have left."""
        fs, path = filesystem(self.url)
        named = {f"{path}/{each.object}" for _, each in self._sent.values()}
        try:
            found = fs.find(f"{path}/{OBJECTS}")
            if unnamed := [each for each in found if each not in named and _is_object(path, each)]:
                fs.rm(unnamed)
        except Exception as error:  # of the filesystem, without a common class
            warnings.warn(
                f"{self.url}: objects of earlier versions stay: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def keep_as_copy(self) -> None:
        """Moves the folder to where ``local_copy`` would download it."""
        if self._base is not None:
            copy = place(COPIES, self.url, self._base.decode())
            copy.parent.mkdir(parents=True, exist_ok=True)
            for hidden in self.local.rglob(".*"):  # which are not published
                remove(hidden)
            with suppress(OSError):  # there is one
                self.local.rename(copy)


def _listing(folder: Path) -> dict[str, Stat]:
    """Returns inode, size and time of change of the files by name, without hidden ones, which are
    locks and parts.
    """
    listing = {}
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                path = Path(above, name)
                listing[path.relative_to(folder).as_posix()] = _stat(path)
    return listing


def _stat(path: Path) -> Stat:
    """Returns inode, size and time of change of a file."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_object(folder: str, path: str) -> bool:
    """Returns whether a command has written an object of a published folder."""
    return OBJECT.match(path.removeprefix(f"{folder}/")) is not None
