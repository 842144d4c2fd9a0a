"""Where a URL becomes a local path: inputs are copied here first, and outputs uploaded afterwards.

The functions that do the work read and write local paths alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.files.whole import is_unicode

Place = str | os.PathLike[str]
"""A local path, or the URL of a store."""
URL = re.compile(r"[A-Za-z][\w+.-]*://")
KEYS = re.compile(  # a password, not a port; a signed query
    r"[\w+.-]+://([^/@]*:(?!\d+/)[^@]*@|\w+:[^@/]*/[^@/]*@|[^?]*\?(.*&)?[^=]*(sig|token|key|secret)[^=]*=)",
    re.IGNORECASE,
)
LOST_SLASH = re.compile(r"(file|s3a?|gc?s|abfss?|az|https?|hdfs|viewfs|memory):/[^/]")


def place_of(place: Place) -> Path | str:
    """Returns a URL as text, and anything else as a local path.

    Raises:
        DataError: the path is not UTF-8, which the libraries that read and write files refuse.
        StoreError: the URL lacks a slash, or holds keys, which would be recorded.
    """
    text = os.fspath(place)
    if not is_unicode(text):
        raise DataError(f"{text!a}: expected a path in UTF-8")
    if LOST_SLASH.match(text):
        raise StoreError(
            f"{text}: expected a URL with two slashes; pathlib.Path drops one of them, text does "
            "not"
        )
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if not URL.match(text):
        return place if isinstance(place, Path) else Path(text)
    if KEYS.match(text):
        scheme = text.partition(":")[0]
        raise StoreError(
            f"{scheme}://…: keys in a URL would be recorded; set them in the environment"
        )
    return text.rstrip("/")


def local(place: Place) -> Path:
    """Returns a local path, or the copy of what a URL names.

    Raises:
        DataError: as ``place_of``.
        StoreError, BusyError, MissingPackageError: as ``place_of``, or the URL cannot be copied.
    """
    found = place_of(place)
    if isinstance(found, Path):
        return found
    from adaftr_fast.extras.stores.inputs import local_copy

    return local_copy(found)


@contextmanager
def output_folder(place: Place) -> Iterator[Path]:
    """Yields the local folder that becomes ``place`` when the block has succeeded.

    Raises:
        BusyError, StoreError, MissingPackageError: as ``extras.stores.outputs.output_folder``.
    """
    url = place_of(place)
    if isinstance(url, Path):
        yield url
        return
    from adaftr_fast.extras.stores import outputs

    with outputs.output_folder(url) as folder:
        yield folder.local


@contextmanager
def output_file(place: Place) -> Iterator[Path]:
    """Yields the local path of a file that becomes ``place`` when the block has succeeded. Raises
    as ``output_folder``.
    """
    url = place_of(place)
    if isinstance(url, Path):
        yield url
        return
    from adaftr_fast.extras.stores import outputs

    with outputs.output_file(url) as file:
        yield file
