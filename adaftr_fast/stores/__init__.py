"""Object stores: paths such as ``s3://bucket/folder``, folders published in them, and local copies of both.

Everything that writes works on a local folder, whose files are replaced one by one; ``publishing_folder`` uploads
consistent states of it. What only reads takes a ``StorePath`` where it takes a ``Path``.
"""

from adaftr_fast.stores.copies import local_copy
from adaftr_fast.stores.path import AnyPath, StorePath, as_path
from adaftr_fast.stores.published import PublishedFile, PublishedFolder, open_folder, read_version
from adaftr_fast.stores.writing import HERE, Output, forget_output, local_file, local_folder, local_place

__all__ = [
    "HERE",
    "AnyPath",
    "Output",
    "PublishedFile",
    "PublishedFolder",
    "StorePath",
    "as_path",
    "forget_output",
    "local_copy",
    "local_file",
    "local_folder",
    "local_place",
    "open_folder",
    "read_version",
]
