"""Reads the file of one split in a prepared folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.arrow import reading
from adaftr_fast.data.dataset.manifest import Manifest, SplitInfo
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.files.json import from_json, loads

# column of the group number; the colon prevents a clash with field and task names
GROUP = "group:id"
WEIGHT = "weight:value"
TRUTH = "truth:"  # prefix of truth columns, which no model reads
INFO = "split"  # metadata key of the file's SplitInfo


def split_file_name(split: str, shard: Shard) -> str:
    """Returns the file name of a split, or of one shard of it."""
    return (
        f"{split}.parquet"
        if shard.count == 1
        else f"{split}-{shard.number:05d}-of-{shard.count:05d}.parquet"
    )


def split_info(path: Path) -> SplitInfo:
    """Returns the rows and positives of a file that ``write_splits`` wrote."""
    return from_json(SplitInfo, loads(pq.read_metadata(path).metadata[INFO.encode()]))


def read_split(
    folder: Path, manifest: Manifest, split: str, columns: list[str] | None = None
) -> pa.Table:
    """Reads a split into memory: all columns, or those of ``columns`` that it has.

    Raises:
        DataError: a file cannot be read or is not the one of the manifest.
    """
    tables = []
    for name in manifest.files(split):
        manifest.check_file(folder / name)
        with (
            reading(folder / name, "not readable"),
            pq.ParquetFile(folder / name, page_checksum_verification=True) as file,
        ):
            tables.append(file.read(columns))
    return pa.concat_tables(tables)


def stored_columns(schema: Schema) -> dict[str, dict[str, pa.DataType]]:
    """Returns the columns of a file that are read, with their types, by the tensor of a batch."""
    many = pa.list_(pa.int32())
    return {
        "ids": {
            field.name: many if field.tokens == "all" else pa.int32() for field in schema.fields
        },
        "dense": {field.name: pa.float32() for field in schema.dense},
        "labels": {label.name: pa.uint8() for label in schema.labels},
        "group": {GROUP: pa.int64()} if schema.group else {},
        "weight": {WEIGHT: pa.float32()} if schema.weight else {},
    }
