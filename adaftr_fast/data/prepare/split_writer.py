"""Encodes raw rows into the files of the splits. Shapes: n rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.dataset.manifest import SplitInfo, total
from adaftr_fast.data.dataset.split_file import GROUP, INFO, TRUTH, WEIGHT, stored_columns
from adaftr_fast.data.encode.canonical import as_float64
from adaftr_fast.data.encode.encoders import Encoder, count_unknown, encode_features
from adaftr_fast.data.encode.groups import Groups
from adaftr_fast.data.memory import DEFAULT, Memory, encoding
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.raw.batches import one_batch
from adaftr_fast.data.raw.source import Scanned
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import replacing

# Every epoch decodes all rows, on cores that train. Streams of bytes, most of which are zeros, take
# half of the time of dictionaries to write and 0.7 to 0.8 of it to read; files of 121 random fields
# are 7 % smaller, those of the flights 28 % larger. Zstandard takes twice the time to read.
ENCODING = {
    "use_dictionary": False,
    "use_byte_stream_split": True,
    "compression": "lz4",
    "write_page_checksum": True,
    "write_statistics": False,  # nothing reads them
}
# fixed: results depend on row groups, and on no bound of memory
ROW_GROUP_ROWS = 1 << 17
ROW_GROUP_BYTES = 32 << 20


def write_splits(
    schema: Schema,
    encoders: dict[str, Encoder],
    groups: Mapping[str, Groups],
    raw: str,
    batches: Iterator[Scanned],
    paths: Mapping[str, Path],
    check: Callable[[], None],
    memory: Memory = DEFAULT,
) -> None:
    """Encodes raw rows into a file per split and stores its ``SplitInfo`` in the metadata. The
    files are written atomically.

    Args:
        groups: groups of all rows of each split in all shards; {} if the schema has no group.
        raw: the input of the raw rows, which errors name.
        batches: those of ``Source.scan`` for the splits.
        paths: the file of each split.
        check: raises an error if the inputs have changed. Called before the files get their names.
        memory: the bound of this process.

    Raises:
        ConfigError: rows do not fit the memory.
        DataError: a weight is negative or not finite, or a column cannot be
            read.
    """
    columns = _columns(schema)

    def encode(rows: Scanned) -> dict[str, tuple[pa.Table, SplitInfo]]:
        try:
            encoded = _encode(schema, encoders, rows)
            return {split: of_split(split, rows, encoded) for split in paths}
        except DataError as error:
            raise DataError(f"{raw}: {error}") from error

    def of_split(
        split: str, rows: Scanned, encoded: dict[str, pa.Array]
    ) -> tuple[pa.Table, SplitInfo]:
        has = rows.splits[split]
        if has.true_count < len(has):  # of all columns at once, in a third of the time
            selected = pa.RecordBatch.from_pydict(encoded).filter(has)
            encoded = dict(zip(encoded, selected.columns))
        if schema.group:
            values = rows.columns[schema.group].filter(has)
            encoded = encoded | {GROUP: groups[split].encode(values)}
        return pa.Table.from_pydict(encoded, schema=columns), _info(schema, encoded)

    with ExitStack() as stack:
        files = {
            split: _SplitFile(stack.enter_context(replacing(path)), columns, stack)
            for split, path in paths.items()
        }
        for encoded in ordered_map(encode, batches, lambda rows: encoding(rows.columns), memory):
            for split, (table, info) in encoded.items():
                files[split].add(table, info)
        for file in files.values():
            file.close()
        check()


class _SplitFile:
    """The file of a split, which grows by encoded rows.

    Its row groups end at the same rows however the rows are divided into tables.
    """

    def __init__(self, path: Path, columns: pa.Schema, stack: ExitStack) -> None:
        writer = pq.ParquetWriter(path, columns, **ENCODING)
        self._writer = stack.enter_context(writer)
        self._info = SplitInfo(0, {}, {})
        self._pending: list[pa.Table] = []
        self._rows = self._size = 0

    def add(self, table: pa.Table, info: SplitInfo) -> None:
        """Appends rows and what is known of them."""
        self._info = total([self._info, info])
        while table.num_rows:
            sizes = self._size + np.cumsum(_row_bytes(table))
            fitting = int(np.searchsorted(sizes, ROW_GROUP_BYTES)) + 1
            count = min(fitting, ROW_GROUP_ROWS - self._rows, table.num_rows)
            self._pending.append(table.slice(0, count))
            self._rows += count
            self._size = int(sizes[count - 1])
            if self._rows == ROW_GROUP_ROWS or self._size >= ROW_GROUP_BYTES:
                self._flush()
            table = table.slice(count)

    def close(self) -> None:
        """Writes the last rows and the footer."""
        if self._pending:
            self._flush()
        self._writer.add_key_value_metadata({INFO: dumps(self._info)})
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_batch(one_batch(self._pending))
        self._pending.clear()
        self._rows = self._size = 0


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


def _columns(schema: Schema) -> pa.Schema:
    columns = [
        pa.field(name, kind, nullable=False)
        for types in stored_columns(schema).values()
        for name, kind in types.items()
    ]
    return pa.schema(columns + [pa.field(TRUTH + name, pa.float64()) for name in schema.truth])


def _encode(schema: Schema, encoders: dict[str, Encoder], rows: Scanned) -> dict[str, pa.Array]:
    """Encodes all columns of rows but their groups, whose ids are those of a split."""
    encoded = encode_features(schema, encoders, rows.columns)
    encoded |= {label.name: rows.labels[label.name] for label in schema.labels}
    if schema.weight:
        encoded[WEIGHT] = _weights(schema.weight, rows.columns[schema.weight])
    return encoded | {
        TRUTH + name: _numbers(f"truth {name}", rows.columns[column])
        for name, column in schema.truth.items()
    }


def _weights(name: str, values: pa.Array) -> pa.Array:
    """Casts raw weights [n] to float32 [n]."""
    numbers = _numbers(f"weight {name}", values).cast(pa.float32())
    plain = numbers.fill_null(np.nan).to_numpy()
    wrong = ~(np.isfinite(plain) & (plain >= 0))
    if wrong.any():
        raise DataError(f"weight {name}: expected finite numbers >= 0, got {plain[wrong][0]:g}")
    return numbers


def _numbers(what: str, values: pa.Array) -> pa.Array:
    try:
        return as_float64(values)
    except pa.ArrowException as error:
        raise DataError(f"{what}: expected numbers, got values of type {values.type}") from error
