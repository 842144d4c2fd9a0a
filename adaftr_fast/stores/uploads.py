"""Multipart uploads to S3 that a killed process has left. They are in no listing, and their parts are paid for."""

from __future__ import annotations

import warnings
from typing import Any

from adaftr_fast.stores.filesystems import s3_options
from adaftr_fast.stores.path import StorePath


def abort_uploads(*paths: StorePath) -> None:
    """Aborts the unfinished uploads of objects whose keys begin with those of ``paths``, which are in one place.

    PyArrow cannot list them, so this needs boto3, and does nothing without it. The upload of a writer that lives is
    begun again. What cannot be listed or aborted stays, with a warning.
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
            for page in store.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for each in page.get("Uploads", ()):
                    store.abort_multipart_upload(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
    except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: boto3 refuses the address of the server
        stay = "unfinished uploads of killed commands may stay"
        warnings.warn(f"{paths[0]}: {stay}: {error}", RuntimeWarning, stacklevel=2)


def _settings(query: str) -> dict[str, Any]:
    """Returns the arguments of boto3 for the options of a URL; PyArrow's of the same meaning have other names."""
    from botocore.config import Config

    options = s3_options(query)
    settings: dict[str, Any] = {"region_name": options.get("region")}
    if (host := options.get("endpoint_override")) is not None:
        settings |= {"endpoint_url": f"{options.get('scheme', 'https')}://{host}"}
        settings |= {"config": Config(s3={"addressing_style": "path"})}
    return settings
