"""Multipart uploads to S3 that a killed process has left. They are in no listing, and their parts are paid for."""

from __future__ import annotations

from typing import Any

from adaftr_fast.stores.filesystems import s3_options
from adaftr_fast.stores.path import StorePath


def abort_uploads(path: StorePath) -> None:
    """Aborts the unfinished uploads of objects whose keys begin with that of ``path``.

    PyArrow cannot list them, so this needs boto3, and does nothing without it. The upload of a writer that lives is
    begun again. What S3 refuses stays.
    """
    scheme, _, rest = path.place.partition("://")
    if scheme != "s3":
        return
    try:
        from boto3 import client
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return
    bucket, _, prefix = path.key.partition("/")
    try:
        store = client("s3", **_settings(rest.partition("?")[2]))
        for page in store.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for each in page.get("Uploads", ()):
                store.abort_multipart_upload(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
    except (BotoCoreError, ClientError, ValueError):  # the last of a name of a host that boto3 refuses
        return


def _settings(query: str) -> dict[str, Any]:
    """Returns the arguments of boto3 for the options of a URL; PyArrow's of the same meaning have other names."""
    from botocore.config import Config

    options = s3_options(query)
    settings: dict[str, Any] = {"region_name": options.get("region")}
    if (host := options.get("endpoint_override")) is not None:
        settings |= {"endpoint_url": f"{options.get('scheme', 'https')}://{host}"}
        settings |= {"config": Config(s3={"addressing_style": "path"})}
    return settings
