"""Outputs in a store: a local folder or file, which is uploaded whole under names of its own, and
then named by one small object.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

from adaftr_fast._files import remove, sha256
from adaftr_fast._json import dumps
from adaftr_fast._locks import LOCK, writer_lock
from adaftr_fast._progress import progress_bar
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

OBJECTS = "objects"
WRITING = "writing"
SECONDS = 60.0  # between two uploads of a run that goes on
Stat = tuple[int, int, int]


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
    an upload has failed.
    """
    local = place(WRITING, url)
    with writer_lock(local.parent.with_suffix(LOCK), url):
        remove(local.parent)  # what a killed command has left
        local.parent.mkdir(parents=True)
        try:
            yield local
        except (BusyError, StoreError):
            raise
        except BaseException:
            remove(local.parent)
            raise
        remove(local.parent)


@contextmanager
def _kept(url: str, local: Path) -> Iterator[None]:
    """Names the local output in an error of an upload."""
    try:
        with store_errors(url):
            yield
    except (BusyError, StoreError) as error:
        kept = f"until the next command that writes it, the output is {local}"
        raise type(error)(f"{error}; {kept}") from error


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
    _sent: dict[str, tuple[Stat, Published]] = field(default_factory=dict)
    _at: float = 0.0  # when it was uploaded last

    def begin(self) -> None:
        """Copies what is published. Raises StoreError if the URL holds anything else."""
        fs, path = filesystem(self.url)
        self._at = time.monotonic()
        with store_errors(self.url):
            pointer = read_pointer(fs, path)
            if pointer is None:
                left = f"{path}/{OBJECTS}/"  # of a killed command, which published nothing
                if other := [each for each in fs.find(path) if not each.startswith(left)]:
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
        """Uploads the folder if the last upload ended a minute ago."""
        if time.monotonic() - self._at >= SECONDS:
            self.upload()

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
                    replace(fs, Path(file.name), new, f"{path}/{POINTER}")
                self._base = content
                self._check_base()
        self._remove_unnamed()
        self._at = time.monotonic()

    def _check_base(self) -> None:
        """Raises BusyError if another process has published the URL."""
        pointer = read_pointer(*filesystem(self.url))
        if (None if pointer is None else pointer[0]) != self._base:
            raise BusyError(f"{self.url}: another process has published it since this one began")

    def _with_objects(self) -> dict[str, tuple[Stat, Published]]:
        """Uploads the files that have changed under a new name. Returns all files."""
        fs, path = filesystem(self.url)
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
                file = Published(f"{OBJECTS}/{version}/{name}", stat[1], sha256(self.local / name))
                put(fs, self.local / name, f"{path}/{file.object}")
                sent[name] = stat, file
                bar.update(stat[1])
        return dict(sorted(sent.items()))

    def _remove_unnamed(self) -> None:
        """Removes the objects of earlier versions, and those that killed commands have left."""
        fs, path = filesystem(self.url)
        named = {f"{path}/{each.object}" for _, each in self._sent.values()}
        try:
            if unnamed := [each for each in fs.find(f"{path}/{OBJECTS}") if each not in named]:
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
                stat = path.stat()
                key = path.relative_to(folder).as_posix()
                listing[key] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return listing
