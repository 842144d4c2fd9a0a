"""Writes ``vocabulary.parquet``, the values behind the ids of a prepared folder, and reads the
encoders back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.arrow import one_array, reading
from adaftr_fast.data.dataset.manifest import FieldInfo, Manifest
from adaftr_fast.data.encode.encoders import Buckets, Encoder, Hashed, Vocabulary
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError

VOCABULARY = "vocabulary.parquet"
GROUP_ROWS = 1 << 16  # many small fields share a row group
COLUMNS = pa.schema(
    [("field", pa.string()), ("id", pa.int32()), ("value", pa.string()), ("count", pa.int64())]
)


def write_vocabulary(path: Path, encoders: dict[str, Encoder]) -> None:
    """Writes one table for all fields: field, id, value (as text), count in the training split."""
    pending = COLUMNS.empty_table()
    with pq.ParquetWriter(path, COLUMNS, compression="zstd", write_page_checksum=True) as writer:
        for name, encoder in encoders.items():
            if isinstance(encoder, Vocabulary):
                rows = len(encoder.values)
                columns = [pa.repeat(name, rows), pa.array(np.arange(1, rows + 1), pa.int32())]
                values = [encoder.values.cast(pa.string()), encoder.counts]
                added = pa.table([*columns, *values], schema=COLUMNS)
                pending = pa.concat_tables([pending, added])
            if len(pending) > GROUP_ROWS:
                writer.write_table(pending)
                pending = COLUMNS.empty_table()
        if len(pending):
            writer.write_table(pending)


def read_encoders(folder: Path, manifest: Manifest) -> dict[str, Encoder]:
    """Reads the encoders of a prepared folder by field, in the order of its fields.

    Raises:
        DataError: the vocabulary is missing, unreadable, or does not match the manifest.
    """
    path = folder / VOCABULARY
    with manifest.naming_replacement(folder), reading(path, "not readable"):
        content = path.read_bytes()
        manifest.check_file(path, content)
        table = pq.read_table(
            pa.BufferReader(content), schema=COLUMNS, page_checksum_verification=True
        )
    fields = manifest.parsed.fields
    encoders: dict[str, Encoder] = {}
    start = 0
    for field, read_as in zip(manifest.fields, fields):
        if field.edges is not None:
            encoders[field.name] = Buckets(np.array(field.edges))
        elif read_as.hashed:
            encoders[field.name] = Hashed(field.num_embeddings - 1)
        elif read_as.vocabulary is None:
            encoders[field.name] = _vocabulary(
                path, table.slice(start, field.num_embeddings - 1), field
            )
            start += field.num_embeddings - 1
    if start != len(table):
        raise DataError(f"{path}: expected {start} rows, as the manifest says, got {len(table)}")
    return with_shared(fields, encoders)


def with_shared(fields: Sequence[Field], encoders: dict[str, Encoder]) -> dict[str, Encoder]:
    """Returns the encoder of every field, given those of the fields that have ids of their own."""
    return {field.name: encoders[field.vocabulary or field.name] for field in fields}


def grown(known: dict[str, Encoder], newer: dict[str, Encoder]) -> dict[str, Encoder]:
    """Returns encoders that keep the ids of ``known`` and add ids for the values that only
    ``newer`` has.
    """
    found = {}
    for name, each in newer.items():
        found[name] = old = known[name]  # buckets do not change
        if isinstance(old, Vocabulary):
            assert isinstance(each, Vocabulary)  # fields of the same kind
            found[name] = old.grown(each)
    return found


def _vocabulary(path: Path, rows: pa.Table, field: FieldInfo) -> Vocabulary:
    # keeps all rows unless the file is damaged
    rows = rows.filter(pc.equal(rows["field"], field.name))
    ids = rows["id"].to_numpy()
    if len(ids) != field.num_embeddings - 1 or not np.array_equal(
        ids, np.arange(1, field.num_embeddings)
    ):
        raise DataError(
            f"{path}: field {field.name}: expected ids 1 to {field.num_embeddings - 1}, got "
            f"{len(ids)} rows"
        )
    values, counts = one_array(rows["value"]), one_array(rows["count"])
    if values.null_count or len(values.unique()) != len(values):
        raise DataError(
            f"{path}: field {field.name}: expected a value of its own for each id, got "
            f"{values.null_count} nulls, and {len(values.unique())} values for {len(values)} ids"
        )
    if counts.null_count or (len(counts) and pc.min(counts).as_py() < 0):
        raise DataError(f"{path}: field {field.name}: expected a count >= 0 for each value")
    return Vocabulary(values, counts)
