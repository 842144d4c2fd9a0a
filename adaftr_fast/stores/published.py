"""Folders published in a store: all files of one state, or those of the state before.

A folder at URL holds ``published.json`` and ``objects/``. The list in published.json maps the name
of each file to its SHA-256 and size. Its content is the object ``objects/SHA256-NAME``, so no
object is ever changed. A new state uploads the objects that are new, then replaces the list, which
a store does in one step. Objects of the state before stay for readers that have its list, and are
removed with the next state.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from adaftr_fast._files import AnyPath, sha256
from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast._publish import read_published
from adaftr_fast.errors import StoreError
from adaftr_fast.stores.filesystems import abort_uploads, retried
from adaftr_fast.stores.path import KnownFile, Stat, StorePath, as_path

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


class TakenError(StoreError):
    """Another process has published the folder that this one writes."""


LIST = "published.json"
OBJECTS = "objects"
OBJECT = re.compile("[0-9a-f]{64}-.*", re.DOTALL)  # the name of one
FORMAT = 1
NEW = ".new"  # end of the name of a file that is not yet in its place
READS = 100  # of a list that is replaced while it is read
PIECE = 8 << 20  # bytes read and written at a time
ONE_REQUEST = 5 << 30  # bytes that S3 copies in one request
SILENT_SECONDS = 2.0  # shorter transfers show no bar


@dataclass(frozen=True)
class Published:
    """One file of a published folder.

    Attributes:
        sha256: of its content, in hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class State:
    """The files of a published folder by name, ``last/x.safetensors`` for one in a folder of it.

    Attributes:
        files: the files.
        before: names of the objects of the state before that this one does not have.
        writer: a name that the states of one writer have in common.
    """

    files: dict[str, Published]
    before: list[str] = field(default_factory=list)
    writer: str = ""

    @property
    def objects(self) -> dict[str, Published]:
        """The files by the name of their object."""
        return {object_name(name, each): each for name, each in self.files.items()}

    def to_bytes(self) -> bytes:
        """Returns the content of ``published.json``."""
        return (dumps({"format": FORMAT} | asdict(self), indent=1) + "\n").encode()


class PublishedFolder(StorePath):
    """A published folder, or a folder in one, whose files have the content that they had when it
    was opened.

    Args:
        published: the published folder.
        state: the files of this folder.
        inner: the path from the published folder to this one, with a "/" at its end; "" for the
            published folder.

    Attributes:
        plain: its path, without a state.
        objects: where the content of the files is.
    """

    def __init__(self, published: StorePath, state: State, inner: str = "") -> None:
        folder = published / inner.rstrip("/") if inner else published
        super().__init__(folder.place, folder.key)
        self.state = state
        self.plain = folder
        self.objects = published / OBJECTS

    def joinpath(self, *names: str) -> StorePath:
        """Returns the path of a file of the state, or of another entry, which other programs may
        have made.
        """
        name = "/".join(names)
        if name in self.state.files:
            return PublishedFile(self, name)
        return self.plain.joinpath(*names)


class PublishedFile(KnownFile):
    """A file of a published folder, with the URL that it would have in a copy. Its content never
    changes.

    Attributes:
        published: its checksum and size.
    """

    def __init__(self, folder: PublishedFolder, name: str) -> None:
        self.published = folder.state.files[name]
        place = folder.objects / object_name(name, self.published)
        super().__init__(place, Stat(self.published.size, 0))
        self._folder = folder
        self._name = name

    @property
    def url(self) -> str:
        """The text that a copy of the folder would give it."""
        return (self._folder.plain / self._name).url

    @property
    def parent(self) -> StorePath:
        """The published folder."""
        return self._folder

    def is_file(self) -> bool:
        """Returns True, as the list of its folder names it."""
        return True

    def read_bytes(self) -> bytes:
        """Returns the content. Raises StoreError where it is not the published one."""
        content = super().read_bytes()
        if hashlib.sha256(content).hexdigest() != self.published.sha256:
            raise StoreError(f"{self.url}: damaged: its sha256 differs from the one in {LIST}")
        return content


def object_name(name: str, file: Published) -> str:
    """Returns the name of the object that holds a file."""
    return f"{file.sha256}-{PurePosixPath(name).name}"


def read_state(folder: StorePath) -> State | None:
    """Returns the files of the folder; None if nothing is published there.

    Raises:
        StoreError: the list is damaged or of another format, or cannot be read.
    """
    try:
        before = None
        for _ in range(READS):
            content = _read_list(folder)
            try:
                return _parsed(content)
            except ValueError as error:
                damage = error
            # The store is asked for the size first. A longer list that replaces this one before it
            # is asked for the content comes without its end, and another read has other bytes.
            if content == before:
                break
            before = content
        raise StoreError(f"{folder / LIST}: damaged: {damage}") from damage
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> State:
    fields = loads(content.decode())
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"expected format {FORMAT}")
    state = from_json(State, fields)
    for name, file in state.files.items():
        if (
            not is_inside(name)
            or len(file.sha256) != 64
            or not file.sha256.isalnum()
            or file.size < 0
        ):
            raise ValueError(f"files: unexpected entry {name!r}")
    return state


def _read_list(folder: StorePath) -> bytes:
    # which cannot replace a file: ``_move`` removes the old one before it renames
    if not is_object_store(folder):
        with suppress(FileNotFoundError):
            return (folder / LIST).read_bytes()
        # cut, where a kill ended the first one
        with suppress(FileNotFoundError, ValueError):
            content = (folder / f"{LIST}{NEW}").read_bytes()
            _parsed(content)
            return content
    return (folder / LIST).read_bytes()  # renamed meanwhile


def is_inside(name: str) -> bool:
    """Returns whether ``name`` is a relative path that stays in its folder."""
    path = PurePosixPath(name)
    return (
        name == str(path)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
        and name != "."
    )


def open_folder(folder: AnyPath) -> AnyPath:
    """Returns the folder as published now, alone or in a folder above it; ``folder`` itself if it
    is not published.

    Raises:
        StoreError: the list of a published folder is damaged or of another format, or cannot be
            read.
    """
    if not isinstance(folder, StorePath) or isinstance(folder, PublishedFolder):
        return folder
    above = folder
    inner = ""
    state = None
    while not above.is_top:
        # without the right to list, S3 denies what is absent; others own folders above
        with suppress(PermissionError):
            state = read_state(above)
        if state is not None:
            own = {
                name.removeprefix(inner): file
                for name, file in state.files.items()
                if name.startswith(inner)
            }
            return PublishedFolder(above, State(own), inner) if own else folder
        above, inner = above.parent, f"{above.name}/{inner}"
    return folder


def reopened(folder: AnyPath) -> AnyPath:
    """Returns a folder that ``open_folder`` has returned as it is published now."""
    return open_folder(folder.plain) if isinstance(folder, PublishedFolder) else folder


def open_file(file: str | os.PathLike[str] | AnyPath) -> AnyPath:
    """Returns the path of a file; of one in a published folder, that of its object, which never
    changes.

    Raises:
        StoreError: the URL is none of a store that can be read.
    """
    path = as_path(file)
    if isinstance(path, Path | PublishedFile) or path.exists():
        return path
    return open_folder(path.parent) / path.name


def known_sha256(path: AnyPath) -> str | None:
    """Returns the SHA-256 of a file in hexadecimal; None of one in a store that would have to be
    read.
    """
    if isinstance(path, PublishedFile):
        return path.published.sha256
    return sha256(path) if isinstance(path, Path) else None


def names_in(folder: AnyPath) -> list[str]:
    """Returns the names in a folder; what another program has written to a store is not listed, and
    has one name. What a killed command has uploaded and not published has none.
    """
    if isinstance(folder, PublishedFolder):
        return sorted(folder.state.files)
    if isinstance(folder, Path):
        return sorted(entry.name for entry in folder.iterdir())
    assert isinstance(folder, StorePath)
    names = _entries(folder / OBJECTS)
    ours = {OBJECTS} if is_object_store(folder) else {OBJECTS, f"{LIST}{NEW}"}
    is_left = (
        ours.issuperset(_entries(folder))
        and not (folder / OBJECTS).is_file()
        and all(map(OBJECT.fullmatch, names))
    )
    return [] if is_left else ["files that no command has published"]


def _entries(folder: StorePath) -> list[str]:
    """Returns the names of files and folders in a folder of a store."""
    from pyarrow.fs import FileSelector

    selector = FileSelector(folder.key, allow_not_found=True)
    found = retried(folder.url, partial(folder.filesystem.get_file_info, selector))
    return [each.base_name for each in found]


def read_version(folder: AnyPath, read: Callable[[AnyPath], T]) -> T:
    """Returns ``read(folder)`` of a folder that may be replaced meanwhile, so that all its files
    are of one version.

    A local folder is read by ``read_published``. One of a store is passed on: ``open_folder`` has
    fixed its version.

    Raises:
        BusyError: a local folder was replaced during each of many attempts.
    """
    return read_published(folder, read) if isinstance(folder, Path) else read(folder)


def publish(
    files: Mapping[str, Path], folder: StorePath, base: State | None, writer: str = ""
) -> State:
    """Makes ``files`` the content of ``folder``, in one step.

    Args:
        files: local files by the name that they get.
        folder: the folder.
        base: the state that is to be replaced; None if nothing is published there.
        writer: a name of this writer. States of the same name are replaced too: a killed process
            may have left the request for one on its way.

    Returns:
        The new state.

    Raises:
        TakenError: another writer has published ``folder`` since ``base``.
        StoreError: the store fails. In both cases the folder keeps its state.
    """
    base = _replaceable(folder, base, writer)
    new = {name: Published(sha256(path), path.stat().st_size) for name, path in files.items()}
    if base is not None and new == base.files:
        return base
    before = base or State({})
    known = before.objects
    missing = {name: each for name in files if (each := object_name(name, new[name])) not in known}
    with transfer_bar("upload", folder.name, sum(new[name].size for name in missing)) as bar:
        for name, each in missing.items():
            _upload_object(files[name], folder / OBJECTS / each, new[name])
            bar.update(new[name].size)
    left = known.keys() - State(new).objects.keys()
    state = State(new, sorted(left), writer)
    _replaceable(folder, base, writer)
    _write_list(folder, state.to_bytes())
    _remove(folder, sorted({*before.before} - {*state.objects, *left}))
    return state


def transfer_bar(what: str, name: str, size: int) -> tqdm:
    """Returns a bar over ``size`` bytes, shown on a terminal, or a hidden one."""
    from adaftr_fast._progress import progress_bar  # imports tqdm, of the extra that brings pyarrow

    return progress_bar(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"{what} {name}",
        delay=SILENT_SECONDS,
        leave=False,
        disable=None,
    )


def remove_unnamed(folder: StorePath, state: State) -> State:
    """Removes the objects that killed or failed writers have left, which the published state does
    not name.

    The list is written anew before, so that a writer on another machine that has uploaded some of
    them for its next state meets another list than it began from, and fails. What cannot be listed
    or removed stays.

    Returns:
        The published state.
    """
    try:
        found = _entries(folder / OBJECTS)
        ours = filter(OBJECT.fullmatch, found)  # others are not of a command
        unnamed = [each for each in ours if each not in {*state.objects, *state.before}]
        if unnamed and read_state(folder) == state:
            state = replace(state, writer=secrets.token_hex(16))
            _write_list(folder, state.to_bytes())
            _remove(folder, unnamed)
    except OSError as error:
        warnings.warn(
            f"{folder}: what killed commands have left may stay: {error}",
            RuntimeWarning,
            stacklevel=1,
        )
    return state


def _replaceable(folder: StorePath, base: State | None, writer: str) -> State | None:
    """Returns the state of ``folder``, if it is ``base`` or of the same writer."""
    state = read_state(folder)
    if state != base and not (writer and state is not None and state.writer == writer):
        raise TakenError(
            f"{folder}: another process has written it meanwhile; only one may write a folder"
        )
    return state


def _upload_object(path: Path, target: StorePath, file: Published) -> None:
    """Uploads a file, unless the object exists, and compares sizes and SHA-256."""

    def operation() -> None:
        if target.filesystem.get_file_info(target.key).size == file.size:
            return
        if _send(path, target, file.size) != file.sha256:  # written while it was sent
            target.filesystem.delete_file(target.key)
            raise StoreError(f"{target}: not uploaded, since its file changes meanwhile")

    retried(target.url, operation)


def _send(path: Path, target: StorePath, size: int) -> str:
    """Uploads a file, compares the sizes, and returns the SHA-256 of what was sent."""
    filesystem = target.filesystem
    digest = hashlib.sha256()
    if not is_object_store(target):
        filesystem.create_dir(str(PurePosixPath(target.key).parent), recursive=True)
    with (
        path.open("rb") as source,
        filesystem.open_output_stream(target.key, compression=None) as stream,
    ):
        while piece := source.read(PIECE):
            stream.write(piece)
            digest.update(piece)
    if (found := filesystem.get_file_info(target.key).size) != size:
        raise OSError(f"{found} of {size} bytes arrived")
    return digest.hexdigest()


def upload(path: Path, target: StorePath) -> None:
    """Makes a local file the content of ``target``.

    The file is uploaded under another name first, since closing a stream after an error could leave
    a part of it. A store replaces ``target`` in one step; HDFS removes it first.

    Raises:
        StoreError: the store fails, or the file is too large for it.
    """
    size = path.stat().st_size
    if size > ONE_REQUEST and target.place.startswith("s3:"):
        raise StoreError(
            f"{target}: expected at most {ONE_REQUEST >> 30} GiB in one file, got "
            f"{size / (1 << 30):.1f}"
        )
    new = target.parent / f".{target.name}{NEW}"

    def operation() -> None:
        _send(path, new, size)
        _move(new, target)
        if (found := target.filesystem.get_file_info(target.key).size) != size:
            raise OSError(f"{found} of {size} bytes arrived")

    retried(target.url, operation)
    abort_uploads(new)


def _move(new: StorePath, target: StorePath) -> None:
    if not is_object_store(target) and target.exists():
        target.filesystem.delete_file(target.key)
    target.filesystem.move(new.key, target.key)


def is_object_store(path: StorePath) -> bool:
    """Returns whether a write replaces an existing file in one step and needs no folder, which HDFS
    has.
    """
    return path.place.partition("://")[0] not in ("hdfs", "viewfs")


def _write_list(folder: StorePath, content: bytes) -> None:
    """Writes ``published.json``. A store shows an object once its upload has ended."""
    target = folder / LIST
    written = target if is_object_store(target) else folder / f"{LIST}{NEW}"

    def operation() -> None:
        with target.filesystem.open_output_stream(written.key, compression=None) as stream:
            stream.write(content)
        if written.read_bytes() != content:
            raise OSError("what was written is not what is read")
        if written != target:
            _move(written, target)

    retried(target.url, operation)


def download(source: PublishedFile, path: Path) -> None:
    """Writes a file of a published folder to ``path``, and checks its SHA-256.

    Raises:
        StoreError: it cannot be read, or its content is not the published one.
    """

    def operation() -> None:
        digest = hashlib.sha256()
        with source.open() as stream, path.open("wb") as file:
            while piece := stream.read(PIECE):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != source.published.sha256:
            raise OSError(f"its sha256 differs from the one in {LIST}")

    retried(source.url, operation)


def _remove(folder: StorePath, objects: list[str]) -> None:
    """Removes objects that no state names; those that cannot be removed stay."""
    for name in objects:
        path = folder / OBJECTS / name
        with suppress(OSError):
            retried(path.url, partial(path.filesystem.delete_file, path.key))
