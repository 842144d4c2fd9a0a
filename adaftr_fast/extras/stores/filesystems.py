"""The filesystem of a URL, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from adaftr_fast.errors import MissingPackageError, StoreError, UserError, first_line

EXTRAS = {"s3": "adaftr-fast[s3]", "s3a": "adaftr-fast[s3]", "gs": "gcsfs", "gcs": "gcsfs"}
"""What to install for the schemes whose name does not say so."""


def filesystem(url: str) -> tuple[Any, str]:
    """Returns the filesystem of a URL, and the path for it.

    Raises:
        MissingPackageError: the filesystem needs a package that is not installed.
        StoreError: there is no such filesystem, or it refuses the URL.
    """
    try:
        # listings are read anew: other processes write
        return url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        todo = EXTRAS.get(url.partition(":")[0])
        install = f'pip install "{todo}"' if todo else first_line(error)
        raise MissingPackageError(f"{url}: its filesystem is not installed: {install}") from error
    except Exception as error:  # of the filesystem, without a common class
        raise StoreError(f"{url}: cannot be used: {first_line(error)}") from error


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Raises an error of the block as StoreError, which names the URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of botocore, aiohttp and others, without a common class
        raise StoreError(f"{url}: {first_line(error)}") from error


def read_if_any(fs: Any, path: str) -> bytes | None:
    """Returns the content of an object; None if it is absent, or the store does not tell."""
    try:
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        return None


def put(fs: Any, file: Path, path: str) -> None:
    """Uploads a file. Folders are created where the store has some."""
    try:
        fs.put_file(str(file), path)
    except FileNotFoundError:
        if fs.async_impl:  # an object store, which has no folders, and lacks the bucket
            raise
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(file), path)


def replace(fs: Any, file: Path, new: str, path: str) -> None:
    """Uploads a file to ``new`` and moves it, so that it replaces the object ``path`` in one
    step.
    """
    put(fs, file, new)
    fs.mv(new, path)
