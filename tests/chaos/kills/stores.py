"""What is in the store, and in the cache of the commands that write there; all in
forked processes.
"""

import os
import shutil
from pathlib import Path

from tests.chaos.kills.commands import STORED
from tests.chaos.kills.services import BUCKET


def cache_of(folder):
    """Returns the cache of the commands of a working directory, beside it."""
    return folder.with_name(f"{folder.name}.cache")


def run(folder, act):
    """Runs ``act`` with the cache of a working directory, and with uploads all the time."""
    from adaftr_fast.extras.stores import outputs

    os.environ["ADAFTR_FAST_CACHE"] = str(cache_of(folder))
    outputs.SECONDS = 0.0
    return act()


def fetch(is_last):
    """Replaces ``out`` by what the store has, if any. Then asserts that nothing else is left, if
    ``is_last``.
    """
    from adaftr_fast.errors import StoreError
    from adaftr_fast.extras.stores.inputs import local_copy

    out = Path("out")
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    if is_published():
        copy = local_copy(STORED)
        shutil.copytree(copy, out) if copy.is_dir() else shutil.copyfile(copy, out)
    elif is_last:
        raise StoreError(f"{STORED}: nothing is published")
    if is_last:
        check_left()
    return 0


def is_published():
    """Returns whether the store has a folder or a file; a kill may have left objects without one."""
    from adaftr_fast.extras.stores.filesystems import filesystem

    fs, path = filesystem(STORED)
    return fs.isfile(path) or fs.isfile(f"{path}/published.json")


def check_left():
    """Asserts that the store has what is published alone, a folder or a file, beside files of
    kills that were not yet moved to their name; and the cache no output.
    """
    from adaftr_fast.extras.stores.filesystems import filesystem
    from adaftr_fast.extras.stores.inputs import POINTER, read_pointer

    fs, path = filesystem(STORED)
    found = {each for each in fs.find(BUCKET) if not each.startswith(f"{BUCKET}/.out.new-")}
    pointer = read_pointer(fs, path)
    named = {path}
    if pointer is not None:
        named = {f"{path}/{name}" for name in (POINTER, *(f.object for f in pointer[1].values()))}
    assert found == named, f"left in the store: {found - named}"
    writing = Path(os.environ["ADAFTR_FAST_CACHE"], "writing")
    assert not (left := [*writing.rglob("*")]), f"left in the cache: {left}"
