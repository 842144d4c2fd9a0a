"""Manifests of prepared folders whose files a test changes."""

import json

from adaftr_fast._files import sha256
from adaftr_fast.data.dataset.manifest import MANIFEST, signed


def recorded(folder, **changes):
    """Records what the files of a prepared folder hold now in its manifest, changed by ``changes``.

    Returns the folder.
    """
    content = json.loads((folder / MANIFEST).read_text()) | changes
    digests = {path.name: sha256(path) for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_text(signed(content | {"sha256": digests}))
    return folder
