"""Object stores: copies of what a URL names on this machine, and outputs that are uploaded whole.

Filesystems are those of fsspec, which repeat failed requests themselves. A folder that a command
has written to a store is ``published.json``, which names the object of each file, and ``objects/``.
"""
