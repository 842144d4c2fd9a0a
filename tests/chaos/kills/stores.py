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
    os.environ |= {"ADAFTR_FAST_CACHE": str(cache_of(folder)), "ADAFTR_FAST_UPLOAD_SECONDS": "0.05"}
    return act()


def fetch(is_last):
    """Replaces ``out`` by what the store has, if any. Then asserts that nothing else is left, if
    ``is_last``.
    """
    from adaftr_fast.stores import PublishedFolder, as_path, open_folder
    from adaftr_fast.stores.cache import download_all

    out = Path("out")
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    stored = open_folder(as_path(STORED))
    if isinstance(stored, PublishedFolder):
        download_all(stored, out)
    elif stored.is_file():
        out.write_bytes(stored.read_bytes())
    if is_last:
        check_left()
    return 0


def check_left():
    """Asserts that the store has what is published alone, a folder or a file, and the cache no
    output.
    """
    import boto3
    from pyarrow.fs import FileSelector

    from adaftr_fast.stores import as_path
    from adaftr_fast.stores.published import LIST, OBJECTS, read_state

    state = read_state(as_path(STORED))
    files = as_path(STORED).filesystem.get_file_info(FileSelector(BUCKET, recursive=True))
    found = {each.path.removeprefix(f"{BUCKET}/out/") for each in files if each.is_file}
    named = {f"{BUCKET}/out"}
    if state is not None:
        named = {LIST, *(f"{OBJECTS}/{name}" for name in (*state.objects, *state.before))}
    assert found == named, f"left in the store: {found - named}"
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not uploads, f"unfinished uploads: {[each['Key'] for each in uploads]}"
    writing = Path(os.environ["ADAFTR_FAST_CACHE"], "writing")
    assert not (left := [*writing.rglob("*")]), f"left in the cache: {left}"
