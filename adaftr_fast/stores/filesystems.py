"""Filesystems of pyarrow by URL, the retries of their operations, and the uploads that they leave
behind.
"""

from __future__ import annotations

import errno
import os
import random
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from adaftr_fast.errors import StoreError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from adaftr_fast.stores.path import StorePath

T = TypeVar("T")
SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs")  # of pyarrow.fs, besides file
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # environment variables of the AWS tools
SDK_ATTEMPTS = 5  # of each request by the AWS SDK
ATTEMPTS, FIRST_PAUSE, LONGEST_PAUSE = 8, 0.2, 10.0  # of an operation, and seconds between them
REQUEST_SECONDS, CONNECT_SECONDS = 60, 10  # after which a request that gets no answer is repeated
DENIED = "ACCESS_DENIED"  # in the message of an error of S3, which is a plain OSError
UNLISTED = (
    "access denied; to a user who may not list (s3:ListBucket), S3 also denies what is absent"
)
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


@lru_cache(maxsize=32)
def filesystem(place: str) -> FileSystem:
    """Returns the filesystem of ``scheme://host?options``, the part of a URL before the path.

    Raises:
        StoreError: the scheme is unknown, or the filesystem does not exist in this build of pyarrow
            or refuses the URL.
    """
    # its start takes a third of a second, and most runs need no store
    from pyarrow import ArrowException, fs

    url = urlsplit(place)
    try:
        if url.scheme == "s3":
            retries = fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS)
            limits = {"request_timeout": REQUEST_SECONDS, "connect_timeout": CONNECT_SECONDS}
            return fs.S3FileSystem(retry_strategy=retries, **limits, **s3_options(url.query))
        return fs.FileSystem.from_uri(place)[0]
    except (ArrowException, OSError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{place}: cannot be used: {first_line(error)}") from error


def s3_options(query: str) -> dict[str, Any]:
    """Returns the options of ``S3FileSystem`` that a URL's query and the environment set."""
    options: dict[str, Any] = dict(parse_qsl(query))
    endpoint = next((value for name in ENDPOINTS if (value := os.environ.get(name))), None)
    if endpoint is not None and "endpoint_override" not in options:
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"} | options
    return options


def retried(what: str, operation: Callable[[], T]) -> T:
    """Returns ``operation()``, repeated after errors that may be of the moment, with growing
    pauses.

    Args:
        what: the URL, which errors name.
        operation: an operation that has the same effect when it is repeated.

    Raises:
        FileNotFoundError, PermissionError: at once; the message names the URL.
        StoreError: the last attempt failed.
    """
    from pyarrow import ArrowException

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return operation()
        except FINAL as error:
            raise type(error)(error.errno or errno.ENOENT, f"{first_line(error)}", what) from error
        except (OSError, ArrowException) as error:
            if DENIED in str(error):
                raise PermissionError(errno.EACCES, UNLISTED, what) from error
            if attempt == ATTEMPTS:
                raise StoreError(f"{what}: failed {ATTEMPTS} times: {first_line(error)}") from error
        time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
    raise AssertionError  # the last attempt returns or raises


def abort_uploads(*paths: StorePath) -> None:
    """Aborts the multipart uploads to S3 that killed processes have left, of keys that begin with
    those of ``paths``.

    The paths are in one place. Such uploads are in no listing, and their parts are paid for.
    PyArrow cannot list them, so this needs boto3, and does nothing without it. The upload of a
    writer that lives is begun again. What cannot be listed or aborted stays, with a warning.
    """
    scheme, _, rest = paths[0].place.partition("://")
    if scheme != "s3":
        return
    try:
        from boto3 import client
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return
    try:
        store = client("s3", **_settings(rest.partition("?")[2]))
        for path in paths:
            bucket, _, prefix = path.key.partition("/")
            for page in store.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=prefix
            ):
                for each in page.get("Uploads", ()):
                    store.abort_multipart_upload(
                        Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
                    )
    # ValueError: boto3 refuses the address of the server
    except (BotoCoreError, ClientError, ValueError) as error:
        stay = "unfinished uploads of killed commands may stay"
        warnings.warn(f"{paths[0]}: {stay}: {error}", RuntimeWarning, stacklevel=2)


def _settings(query: str) -> dict[str, Any]:
    """Returns the arguments of boto3 for the options of a URL; PyArrow's of the same meaning have
    other names.
    """
    from botocore.config import Config

    options = s3_options(query)
    settings: dict[str, Any] = {"region_name": options.get("region")}
    if (host := options.get("endpoint_override")) is not None:
        settings |= {"endpoint_url": f"{options.get('scheme', 'https')}://{host}"}
        settings |= {"config": Config(s3={"addressing_style": "path"})}
    return settings
