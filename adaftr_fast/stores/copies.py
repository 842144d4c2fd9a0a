"""Local copies of what stores hold, for readers of whole files."""

from __future__ import annotations

import os
import time
from pathlib import Path

from adaftr_fast._publish import publishing
from adaftr_fast.errors import BusyError, StoreError
from adaftr_fast.stores.cache import COPIES, cache_bytes, cache_folder, short_digest, shrink
from adaftr_fast.stores.path import AnyPath, StorePath, as_path
from adaftr_fast.stores.progress import transfer_bar
from adaftr_fast.stores.published import PublishedFolder, State, download, open_folder, read_state

POLL_SECONDS = 0.2
ATTEMPTS = 5  # of a download, each of which met a writer


def local_copy(path: str | AnyPath) -> Path:
    """Returns a local folder with the content of a published folder of a store; a local path unchanged.

    It is downloaded once for each state of the folder, and its checksums are compared then. If the folder is replaced
    meanwhile, its new state is downloaded.

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
        except FileNotFoundError as error:  # the objects of a state go when the second state after it is published
            now = opened.now()
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
    with transfer_bar("download", folder.name, sum(each.size for each in folder.state.files.values())) as bar:
        for name, each in folder.state.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            download(folder.file(name), target / name)
            bar.update(each.size)


def copy_path(folder: StorePath, state: State) -> Path:
    """Returns where the copy of a state of a folder lies; its name is the folder's."""
    place = short_digest(f"{folder.place} {folder.key} {state.to_bytes().decode()}")
    return cache_folder() / COPIES / place / folder.name
