"""Files of a test in a store, and what a prepared folder holds."""

import json
from pathlib import Path

from adaftr_fast.stores import as_path
from adaftr_fast.stores.published import publish, upload

VARYING = ("inputs", "sha256")  # keys of a manifest that tell inputs in a store from local ones


def put(source, url):
    """Copies a file, or a folder file by file, to ``url``, as other programs do.
    Returns the URL.
    """
    source = Path(source)
    for path in (
        [source]
        if source.is_file()
        else sorted(each for each in source.rglob("*") if each.is_file())
    ):
        upload(path, as_path("/".join([url, *path.relative_to(source).parts])))
    return url


def publish_folder(folder, url, base=None):
    """Publishes the files of a local folder as one state."""
    return publish({path.name: path for path in sorted(folder.iterdir())}, as_path(url), base)


def content(folder):
    """Returns the bytes of all files of a prepared folder, and what its manifest holds."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(files.pop("schema.json"))
    return files, {key: value for key, value in manifest.items() if key not in VARYING}
