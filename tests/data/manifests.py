"""Manifests of prepared folders whose files a test changes."""

import json

from adaftr_fast.data.dataset.manifest import MANIFEST, signed
from adaftr_fast.files.whole import sha256


def recorded(folder, **changes):
    """Records what the files of a prepared folder hold now in its manifest, changed by ``changes``.

    Returns the folder.
    """
    content = json.loads((folder / MANIFEST).read_text()) | changes
    digests = {path.name: sha256(path) for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_text(signed(content | {"sha256": digests}))
    return folder
