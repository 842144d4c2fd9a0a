"""Writes a folder or a file of a store: a local one, which is uploaded meanwhile and in the end."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from adaftr_fast._files import AnyPath, read_json, remove, sync_tree, write_json
from adaftr_fast._locks import LOCK, writer_lock
from adaftr_fast.errors import StoreError
from adaftr_fast.stores.cache import (
    WRITING,
    cache_bytes,
    cache_folder,
    clear,
    copy_path,
    download_all,
    remove_output,
    short_digest,
    shrink,
)
from adaftr_fast.stores.filesystems import abort_uploads
from adaftr_fast.stores.path import StorePath, as_path
from adaftr_fast.stores.published import (
    LIST,
    OBJECTS,
    PublishedFolder,
    State,
    TakenError,
    publish,
    read_state,
    remove_unnamed,
    upload,
)

UPLOAD_SECONDS, DEFAULT_SECONDS = "ADAFTR_FAST_UPLOAD_SECONDS", 30.0  # an environment variable
# bytes of a file; larger ones are linked, and not published if they are written in place meanwhile
COPIED = 16 << 20
TAKEN = ".taken"  # the files of one state while they are uploaded, beside the local folder
LOCK_SECONDS = 1.0  # to wait for a process that holds the lock only to see whether somebody writes
TRIES = 50  # to find a folder unchanged while its files are collected
Listing = dict[str, tuple[int, int, int]]


@contextmanager
def local_folder(folder: str | AnyPath, *, download: bool = True) -> Iterator[Path]:
    """Yields the local folder that stands for ``folder`` during the block, with its content; a
    local one itself.

    A thread publishes a new state of the local folder every ``ADAFTR_FAST_UPLOAD_SECONDS``, and so
    does the end of the block, also after an error. Every state is one that the local folder had at
    some time, as after a power failure. Where the thread finds that another machine has written
    ``folder``, it ends a block of the main thread as Ctrl-C does. If a process is killed, the next
    one on this machine goes on with the local folder, and one on another machine with the last
    published state.

    Args:
        folder: a local folder, or one of a store.
        download: whether to begin with the content of ``folder``. Otherwise the block replaces it
            as a whole, or leaves it as it is by writing nothing.

    Raises:
        BusyError: another process on this machine writes ``folder``.
        StoreError: ``folder`` is a bucket, the store fails, or another machine has written
            ``folder`` since. The local folder is kept.
    """
    folder = as_path(folder)
    if isinstance(folder, Path):
        yield folder
        return
    if folder.is_top:
        raise StoreError(f"{folder}: expected a folder in it")
    with _only_writer(folder) as local:
        sender = _Sender(local, folder, *_begin(local, folder, download), upload_seconds())
        with sender.running():
            yield local
        _keep_as_copy(local, folder, sender.base)


def local_place(path: StorePath) -> Path:
    """Returns where a folder or a file is kept while it is written, alone in a folder
    of its own.
    """
    return cache_folder() / WRITING / short_digest(f"{path.place} {path.key}") / path.name


def forget_output(path: AnyPath) -> None:
    """Removes what a killed command has left on this machine of an output in a store, once ``path``
    has all of it.
    """
    if isinstance(path, StorePath) and (output := local_place(path).parent).exists():
        remove_output(output)


@contextmanager
def _only_writer(path: StorePath) -> Iterator[Path]:
    """Yields ``local_place``, where this process alone writes during the block."""
    local = local_place(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writer_lock(local.with_name(LOCK), local, LOCK_SECONDS):
            # with the lock, so it spares what a killed command has left here
            shrink(cache_folder(), cache_bytes())
            yield local
    finally:
        with suppress(OSError):  # not empty after an upload that has failed
            local.parent.rmdir()


def upload_seconds() -> float:
    """Returns the seconds between two uploads. Raises StoreError if the variable is not a number
    above 0.
    """
    text = os.environ.get(UPLOAD_SECONDS, "")
    try:
        seconds = float(text) if text else DEFAULT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < threading.TIMEOUT_MAX:
        raise StoreError(f"{UPLOAD_SECONDS}: expected a number of seconds above 0, got {text!r}")
    return seconds


@contextmanager
def local_file(file: str | AnyPath) -> Iterator[Path]:
    """Yields the path of a new local file, which becomes ``file`` after the block; a local path
    itself.

    Raises:
        BusyError: another process on this machine writes ``file``.
        StoreError: the store fails; ``file`` is as before, and the local one, which the message
            names, is kept.
    """
    file = as_path(file)
    if isinstance(file, Path):
        yield file
        return
    with _only_writer(file) as local:
        clear(local.parent)  # of what a killed command has left
        try:
            yield local
        except BaseException:
            clear(local.parent)
            raise
        if local.exists():
            try:
                upload(local, file)
            except OSError as error:
                raise StoreError(f"{error}; the file is {local}") from error
        clear(local.parent)


@dataclass(frozen=True)
class _Origin:
    """What a local folder was begun from, in a file beside it.

    Attributes:
        writer: the name in the states that it has published.
        base: the SHA-256 of the state that it was downloaded from; "" if nothing was published.
    """

    writer: str
    base: str

    def goes_on(self, state: State | None) -> bool:
        """Returns whether nobody else has published since."""
        return self.base == _digest(state) or (state is not None and state.writer == self.writer)


def _begin(local: Path, folder: StorePath, download: bool) -> tuple[State | None, str]:
    """Makes the local folder the published one, or absent, unless a process that was killed began
    it from that.

    Returns:
        The published state, and the name of the writer.
    """
    state = read_state(folder)
    origin = _read_origin(local)
    if (
        origin is not None
        and origin.goes_on(state)
        and (local.exists() or state is None or not download)
    ):
        return state, origin.writer
    remove(local)
    local.parent.mkdir(parents=True, exist_ok=True)
    if state is not None and download:
        download_all(PublishedFolder(folder, state), local)
        sync_tree(local)
    origin = _Origin(secrets.token_hex(16), _digest(state))
    write_json(_origin_path(local), origin)
    return state, origin.writer


def _digest(state: State | None) -> str:
    return "" if state is None else hashlib.sha256(state.to_bytes()).hexdigest()


def _read_origin(local: Path) -> _Origin | None:
    try:
        return read_json(_Origin, _origin_path(local))
    except (FileNotFoundError, ValueError):
        return None


def _origin_path(local: Path) -> Path:
    return local.with_name(f".{local.name}.origin")


def _keep_as_copy(local: Path, folder: StorePath, state: State | None) -> None:
    """Moves the local folder to where ``local_copy`` would download it."""
    _origin_path(local).unlink(missing_ok=True)
    if state is None:
        remove(local)
        return
    if not local.exists():
        return
    for hidden in local.rglob(".*"):  # which are not published
        remove(hidden)
    copy = copy_path(folder, state)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # there is one, which others may be reading
        local.rename(copy)
    remove(local)


@dataclass
class _Sender:
    """Publishes the states of a local folder.

    Attributes:
        base: the state that is published.
        writer: the name of the writer in its states.
        seconds: the time between two uploads.
    """

    local: Path
    folder: StorePath
    base: State | None
    writer: str
    seconds: float
    _sent: Listing | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        is_main = threading.current_thread() is threading.main_thread()
        main = threading.get_ident() if is_main else None
        thread = threading.Thread(
            target=self._send_from_time_to_time, args=(main,), name="upload", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            try:
                self._send()
                self._tidy()
                if self.local.exists() and self._sent != _listing(self.local):
                    raise StoreError(
                        f"{self.folder}: not uploaded, since {self.local} changes all the time"
                    )
            except TakenError as error:
                kept = f"what this one wrote is in {self.local} until its next start, which"
                raise TakenError(f"{error}; {kept} begins from {self.folder}") from error
            except OSError as error:
                kept = f"all files are in {self.local}, from which the same command goes on"
                raise StoreError(f"{error}; {kept}") from error

    def _send_from_time_to_time(self, main: int | None) -> None:
        """Publishes the folder until the block ends, or ends it where another process has.

        Args:
            main: the main thread, if the block runs there. It alone handles signals.
        """
        while not self._ended.wait(self.seconds):
            try:
                self._send()
            except TakenError:  # raised again at the end of the block
                if main is not None and not self._ended.is_set():
                    signal.pthread_kill(main, signal.SIGINT)
                return
            except OSError as error:
                warnings.warn(
                    f"{self.folder}: not uploaded, is tried again: {error}",
                    RuntimeWarning,
                    stacklevel=1,
                )

    def _send(self) -> None:
        """Publishes the folder, if it exists, has changed, and does not change while its files are
        collected.
        """
        if not self.local.exists():
            return
        taken = self.local.with_name(TAKEN)
        remove(taken)  # of a killed process
        taken.mkdir()
        try:
            if (found := _collect(self.local, taken, self._sent)) is None:
                return
            self.base = publish(
                {name: taken / name for name in found}, self.folder, self.base, self.writer
            )
            self._sent = found
        finally:
            remove(taken)

    def _tidy(self) -> None:
        """Removes from the store what killed processes have left."""
        if self.base is not None and self._sent is not None:
            self.base = remove_unnamed(self.folder, self.base)
            abort_uploads(self.folder / OBJECTS, self.folder / LIST)


def _collect(folder: Path, target: Path, unless: Listing | None) -> Listing | None:
    """Copies or links the files of one state of a folder; returns None if that is ``unless``, or
    not to be had now.
    """
    for _ in range(TRIES):
        before = _listing(folder)
        if before == unless:
            return None
        with suppress(FileNotFoundError):
            for name, (_, size, _) in before.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                copy: Callable[[Path, Path], object] = os.link if size > COPIED else shutil.copyfile
                copy(folder / name, target / name)
            if _listing(folder) == before:
                return before
        for entry in target.iterdir():
            remove(entry)
        threading.Event().wait(0.02)
    return None


def _listing(folder: Path) -> Listing:
    """Returns inode, size and time of change of the files by name, without hidden ones, which are
    locks and parts.
    """
    listing = {}
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                path = Path(above, name)
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    listing[path.relative_to(folder).as_posix()] = (
                        stat.st_ino,
                        stat.st_size,
                        stat.st_mtime_ns,
                    )
    return listing
