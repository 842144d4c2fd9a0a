"""A folder that is built beside its place and renamed into it; what an interrupted run built is kept for the next."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.shard import Part
from adaftr_fast.errors import DataError

LOCK, KEY = "lock", "key"
REPLACED = "replaced"  # what was published before
LAYOUT = 2  # of what lies in a work folder; raise it when that changes, so that none of another version is gone on with


@contextmanager
def workplace(folder: Path, key: str) -> Iterator[Path]:
    """A folder ``.NAME.work`` beside ``folder`` that holds what an interrupted run of the same ``key`` left.

    It is removed when the block ends well or by a DataError, which another run would meet again; an interruption or
    a full disk leaves it.

    Raises:
        DataError: another process works there.
    """
    work = _beside(folder)
    work.mkdir(parents=True, exist_ok=True)
    with alone(work / LOCK, taken=f"{folder}: another process is preparing it"):
        _take_back(work, folder)
        if not _begun(work, key):
            _empty(work)
            replace_file(work / KEY, f"{LAYOUT} {key}".encode())
        try:
            yield work
        except DataError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def clear(folder: Path, key: str) -> None:
    """Removes the ``workplace`` of a run that was killed once its folder was published, unless it is still running."""
    if _begun(_beside(folder), key):
        with suppress(DataError), workplace(folder, key):
            pass


def _beside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"


def _begun(work: Path, key: str) -> bool:
    return (work / KEY).is_file() and (work / KEY).read_text() == f"{LAYOUT} {key}"


@contextmanager
def shared_workplace(work: Path, folder: Path, part: Part, key: dict[str, Any]) -> Iterator[None]:
    """The folder ``work``, which is there, for one part while others do theirs; nothing but ``key`` is put there.

    Args:
        folder: what is made there.
        key: what must be the same for all parts, by name.

    Raises:
        DataError: another process works on this part, or the parts there have another key.
    """
    key = json.loads(dumps({"layout of the folder": LAYOUT} | key))
    with alone(work / LOCK):
        _take_back(work, folder)
        if not (work / KEY).exists():
            replace_file(work / KEY, dumps(key).encode())
    theirs = json.loads((work / KEY).read_text(encoding="utf-8"))
    if others := [name for name, value in key.items() if theirs.get(name) != value]:
        raise DataError(
            f"part {part}: the parts in {work} were begun with another {', '.join(others)}; go on with that, or remove "
            "the folder to begin anew"
        )
    with alone(work / f"{LOCK}-{part.number}", taken=f"part {part}: another process is preparing it"):
        yield


@contextmanager
def alone(path: Path, taken: str | None = None) -> Iterator[None]:
    """Holds the lock ``path``, once others have left it.

    Args:
        taken: the error, if one shall not wait for them.

    Raises:
        DataError: it is held by another process.
        FileNotFoundError: its folder is gone.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as error:
            raise DataError(taken) from error
        yield


def publish(new: Path, folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Renames ``new`` to ``folder``, whose former content is then beside where ``new`` was, or back if that fails.

    Args:
        check: raises an error if ``folder``, which is there, may not be replaced.
    """
    replaced = new.with_name(REPLACED)
    if folder.exists():
        check()
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    try:
        new.rename(folder)
    except BaseException:
        _take_back(new.parent, folder)
        raise


def remove(work: Path) -> None:
    """Removes a folder at once, so that no process finds half of it."""
    sweep(work)
    work.rename(_removed(work))
    sweep(work)


def sweep(work: Path) -> None:
    """Removes what ``remove`` left if its process was killed."""
    shutil.rmtree(_removed(work), ignore_errors=True)


def _removed(work: Path) -> Path:
    return work.with_name(f"{work.name}.old")


def _take_back(work: Path, folder: Path) -> None:
    """Puts back what ``publish`` moved away without getting further."""
    if (work / REPLACED).exists() and not folder.exists():
        (work / REPLACED).rename(folder)


def _empty(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
