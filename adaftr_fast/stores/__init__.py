"""Object stores: paths such as ``s3://bucket/folder``, folders published in them, and local copies
of both.

Everything that writes works on a local folder, whose files are replaced one by one;
``local_folder`` uploads consistent states of it. What only reads takes an ``AnyPath``.
"""

from adaftr_fast.stores.cache import local_copy
from adaftr_fast.stores.path import (
    StorePath,
    arrow_path,
    as_path,
    files_below,
    in_store,
    parts_below,
)
from adaftr_fast.stores.published import (
    PublishedFile,
    PublishedFolder,
    known_sha256,
    names_in,
    open_file,
    open_folder,
    read_version,
    reopened,
)
from adaftr_fast.stores.writing import forget_output, local_file, local_folder, local_place

__all__ = [
    "PublishedFile",
    "PublishedFolder",
    "StorePath",
    "arrow_path",
    "as_path",
    "files_below",
    "forget_output",
    "in_store",
    "known_sha256",
    "local_copy",
    "local_file",
    "local_folder",
    "local_place",
    "names_in",
    "open_file",
    "open_folder",
    "parts_below",
    "read_version",
    "reopened",
]
