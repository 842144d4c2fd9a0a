"""Writes the files of the splits of a prepared folder. Shapes: n rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.dataset import split_file
from adaftr_fast.data.dataset.manifest import SplitInfo, total
from adaftr_fast.data.dataset.split_file import GROUP, TRUTH, file_schema
from adaftr_fast.data.encode.encoders import Encoder, Vocabulary, count_unknown
from adaftr_fast.data.memory import Memory, encoding
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.prepare.table import WEIGHT, Columns
from adaftr_fast.data.raw.batches import one_batch
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.engines import Advance

# Every epoch decodes all rows, on cores that train. Against Zstandard and columns that may hold
# nulls, this takes half of the time; files of 121 random fields are 16 % larger, those of the
# flights 15 %.
COMPRESSION = "lz4"
# fixed: results depend on row groups, and on no bound of memory
ROW_GROUP_ROWS = 1 << 17
ROW_GROUP_BYTES = 32 << 20


def write_splits(
    columns: Columns,
    encoders: Mapping[str, Encoder],
    rows: Iterator[pa.RecordBatch],
    paths: Mapping[str, Path],
    memory: Memory,
    advance: Advance,
) -> dict[str, SplitInfo]:
    """Encodes the rows of ``rows_with_ids`` into a file for each split. Returns what they hold.

    Args:
        paths: the new files by split.
        memory: the bound of this process.
        advance: called with numbers of rows.

    Raises:
        ConfigError: rows do not fit the memory.
    """
    schema = columns.schema
    types = file_schema(schema)
    infos = dict.fromkeys(paths, SplitInfo(0, {}, {}))

    def encode(batch: pa.RecordBatch) -> tuple[int, dict[str, tuple[pa.Table, SplitInfo]]]:
        found = {}
        for split in paths:
            encoded = _encode(columns, encoders, split, batch.filter(batch[split]))
            info = _info(schema, encoded)
            found[split] = pa.Table.from_pydict(encoded, schema=types), info
        return batch.num_rows, found

    with ExitStack() as stack:
        pending = {}
        writers = {}
        for split, path in paths.items():
            writer = pq.ParquetWriter(
                path, types, compression=COMPRESSION, write_page_checksum=True
            )
            writers[split] = stack.enter_context(writer)
            pending[split] = _RowGroups()
        for count, tables in ordered_map(encode, rows, encoding, memory):
            for split, (table, info) in tables.items():
                infos[split] = total([infos[split], info])
                for row_group in pending[split].add(table):
                    writers[split].write_batch(row_group)
            advance(count)
        for split, writer in writers.items():
            for row_group in pending[split].rest():
                writer.write_batch(row_group)
    return infos


def _info(schema: Schema, encoded: dict[str, pa.Array]) -> SplitInfo:
    labels = {label.name: encoded[label.name].to_numpy() for label in schema.labels}
    tasks = list(labels)
    return SplitInfo(
        rows=len(labels[tasks[0]]),
        positives={task: int(values.sum()) for task, values in labels.items()},
        unknown={field.name: count_unknown(encoded[field.name]) for field in schema.features},
        outside_funnel={
            stage: int((labels[stage] > labels[before]).sum())
            for before, stage in pairwise(schema.funnel)
        },
        both={
            first: {other: int((labels[first] & labels[other]).sum()) for other in tasks[n + 1 :]}
            for n, first in enumerate(tasks)
        },
    )


class _RowGroups:
    """Divides encoded rows into row groups, which end at the same rows however the rows are divided
    into tables.
    """

    def __init__(self) -> None:
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._size = 0

    def add(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        """Adds rows, and yields the row groups that are whole."""
        while table.num_rows:
            sizes = self._size + np.cumsum(_row_bytes(table))
            fitting = int(np.searchsorted(sizes, ROW_GROUP_BYTES)) + 1
            count = min(fitting, ROW_GROUP_ROWS - self._rows, table.num_rows)
            self._pending.append(table.slice(0, count))
            self._rows += count
            self._size = int(sizes[count - 1])
            if self._rows == ROW_GROUP_ROWS or self._size >= ROW_GROUP_BYTES:
                yield from self.rest()
            table = table.slice(count)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows that are no whole row group."""
        if self._pending:
            yield one_batch(self._pending)
        self._pending = []
        self._rows = 0
        self._size = 0


def _row_bytes(table: pa.Table) -> np.ndarray:
    """Returns the bytes of each row [n], without offsets and bits of missing values."""
    found = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        kind = column.type
        if pa.types.is_list(kind):
            found += kind.value_type.byte_width * pc.list_value_length(column).to_numpy()
        else:
            found += kind.byte_width
    return found


def _encode(
    columns: Columns,
    encoders: Mapping[str, Encoder],
    split: str,
    rows: pa.RecordBatch,
) -> dict[str, pa.Array]:
    """Encodes all columns of the rows of a split."""
    schema = columns.schema
    encoded = {}
    for field in schema.features:
        encoded[field.name] = rows[columns.fields[field.name]]
        if field.kind != "dense":
            encoded[field.name] = _ids(encoders[field.name], encoded[field.name])
    encoded |= {label.name: rows[columns.labels[label.name]] for label in schema.labels}
    if schema.group:
        encoded[GROUP] = rows[f"group_{split}"]
    if schema.weight:
        encoded[split_file.WEIGHT] = rows[WEIGHT]
    return encoded | {TRUTH + name: rows[column] for name, column in columns.truth.items()}


def _ids(encoder: Encoder, values: pa.Array) -> pa.Array:
    """Returns ids, int32 [n] or lists of them. Single values in a vocabulary are ids already."""
    if pa.types.is_list(values.type):
        return pa.ListArray.from_arrays(values.offsets, encoder.encode(values.values))
    return values if isinstance(encoder, Vocabulary) else encoder.encode(values)
