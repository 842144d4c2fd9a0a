"""Reads parquet in memory that does not grow with the files and their row groups.

A scanner of Arrow decodes whole row groups and reads ahead a fixed number of them, of any size.
Here a row group is decoded in pieces of a few rows, a table ends when it is large enough, and one
table is read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.data.arrow import shown
from adaftr_fast.data.encode.canonical import without_nan
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.parallel import prefetch

BATCH_ROWS = 1 << 17
STEP_ROWS = 1 << 15
STEP_BYTES = 8 << 20
# of a piece, which is decoded at once; a step has so many, or more small ones. A step of numbers,
# whose width is known, is one piece: several take twice the time.
PIECE_ROWS = 1 << 12
STEP_PIECES = 8
# whose width is measured: values that repeat are many times larger than the bytes of their pages
FIRST_ROWS = 1 << 6
BUFFER_BYTES = 1 << 18  # of each column of a row group that is read piece by piece
Read = Callable[[pa.RecordBatch], pa.RecordBatch]
PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
"""Parquet whose pages are compared with their checksums, where a file has any."""


def read_tables(
    dataset: ds.Dataset,
    names: Sequence[str],
    columns: Mapping[str, pc.Expression] | None = None,
    read: Read | None = None,
    memory: Memory = DEFAULT,
) -> Iterator[pa.Table]:
    """Yields the rows of parquet files in their order, while a thread reads the next table.

    A table holds up to ``BATCH_ROWS`` consecutive rows of a row group. It ends before if it has
    ``memory.batch`` bytes.

    Args:
        names: the columns to read, at least one. One that a file lacks is missing in its rows, and
            one of another type than in the first file is cast.
        columns: the columns of the tables, as expressions of those to read; None for these
            themselves.
        read: changes the values of the columns before ``columns`` see them; None leaves them.
        memory: the bound of this process.

    Raises:
        pyarrow.ArrowException, OSError: a file cannot be read, a column occurs twice in it, or an
            expression does not fit the types of its columns.
    """
    fields = pa.schema([dataset.schema.field(name) for name in dict.fromkeys(names)])
    return prefetch(_tables(dataset, fields, columns, read, memory.batch))


def fragment_rows(fragment: ds.ParquetFileFragment) -> int:
    """Returns the number of rows of the row groups of a fragment."""
    return sum(group.num_rows for group in fragment.row_groups)


def coalesced(
    tables: Iterable[pa.Table],
    memory: Memory = DEFAULT,
) -> Iterator[pa.RecordBatch]:
    """Yields the same rows in batches of about ``BATCH_ROWS`` rows, unless these have more than
    ``memory.batch``.
    """
    pending: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        if not table.num_rows:
            continue
        pending.append(table)
        rows += table.num_rows
        size += table.nbytes
        if rows > BATCH_ROWS // 2 or size > memory.batch // 2:
            yield one_batch(pending)
            pending = []
            rows = size = 0
    if pending:
        yield one_batch(pending)


def one_batch(tables: list[pa.Table]) -> pa.RecordBatch:
    """Returns the rows of tables of the same columns."""
    return pa.concat_batches(pa.concat_tables(tables).to_batches())


def _tables(
    dataset: ds.Dataset,
    fields: pa.Schema,
    columns: Mapping[str, pc.Expression] | None,
    read: Read | None,
    most: int,
) -> Iterator[pa.Table]:
    widest = 0.0
    returned = columns if columns is None else dict(columns)
    for fragment in dataset.get_fragments():
        for row_group in fragment.split_by_row_group():
            steps: list[pa.Table] = []
            rows = size = 0
            for step in _steps(row_group, fields, most, widest):
                widest = max(widest, step.nbytes / max(1, step.num_rows))
                step = read(step) if read else step
                scanner = ds.InMemoryDataset(step).scanner(columns=returned, use_threads=False)
                steps.append(scanner.to_table())
                rows += step.num_rows
                size += steps[-1].nbytes
                if rows >= BATCH_ROWS or size >= most:
                    yield pa.concat_tables(steps)
                    steps.clear()
                    rows = size = 0
            if steps:
                yield pa.concat_tables(steps)


def _steps(
    row_group: ds.ParquetFileFragment, fields: pa.Schema, most: int, widest: float
) -> Iterator[pa.RecordBatch]:
    """Yields columns of a row group in steps of several pieces. Its bytes are read at once unless
    they are too many.

    Args:
        most: bytes of the row group that are too many to be read at once, and of a step.
        widest: mean bytes of a row of the widest step so far, 0 before the first one.
    """
    (info,) = row_group.row_groups
    is_large = info.total_byte_size > most
    limit = min(STEP_BYTES, most)
    with row_group.open() as file:
        reader = pq.ParquetFile(
            file,
            metadata=row_group.metadata,
            pre_buffer=not is_large,
            buffer_size=BUFFER_BYTES if is_large else 0,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,  # as in the schema of a dataset
        )
        if not widest:
            first = next(reader.iter_batches(FIRST_ROWS, [info.id], fields.names), None)
            widest = first.nbytes / first.num_rows if first else 0.0
        width = max(widest, info.total_byte_size / max(1, info.num_rows))
        is_flat = all(pa.types.is_primitive(field.type) for field in fields)
        most_rows, most_bytes = (
            (STEP_ROWS, limit) if is_flat else (PIECE_ROWS, limit // STEP_PIECES)
        )
        pending: list[pa.RecordBatch] = []
        rows = size = 0
        for piece in _pieces(reader, info.id, fields.names, width, most_rows, most_bytes):
            pending.append(piece)
            rows += piece.num_rows
            size += piece.nbytes
            if rows % min(STEP_ROWS, BATCH_ROWS) == 0 or size >= limit:
                yield _step(row_group.path, pending, fields)
                pending.clear()
                size = 0
        if pending:
            yield _step(row_group.path, pending, fields)


def _pieces(
    reader: pq.ParquetFile,
    row_group: int,
    names: list[str],
    width: float,
    most_rows: int,
    most: int,
) -> Iterator[pa.RecordBatch]:
    """Yields a row group in pieces. One of more than ``most`` bytes shortens those after it.

    Args:
        width: planned bytes of a row.
    """
    rows = _piece_rows(width, most_rows, most)
    done = 0
    while True:
        for piece in islice(reader.iter_batches(rows, [row_group], names), -(-done // rows), None):
            yield piece
            done += piece.num_rows
            if rows > 1 and piece.nbytes > most:
                rows = _piece_rows(piece.nbytes / piece.num_rows, most_rows, most)
                break
        else:
            return


def _piece_rows(width: float, most_rows: int, most: int) -> int:
    fitting = 1 << max(0, int(most / max(1, width)).bit_length() - 1)
    return min(fitting, most_rows, STEP_ROWS, BATCH_ROWS)  # powers of two


def _step(path: str, pieces: list[pa.RecordBatch], fields: pa.Schema) -> pa.RecordBatch:
    batch = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
    return pa.record_batch([_column(path, batch, field) for field in fields], schema=fields)


def _column(path: str, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    places = batch.schema.get_all_field_indices(field.name)
    if len(places) > 1:
        raise pa.ArrowInvalid(f"expected one column {field.name!r}, got {len(places)}")
    if not places:
        return pa.nulls(batch.num_rows, field.type)
    values = batch[places[0]]
    if values.type == field.type:
        return values
    if pa.types.is_floating(values.type):
        values = without_nan(values)  # which is missing; no integer is
    try:
        if pa.types.is_dictionary(field.type):  # to which Arrow casts no numbers
            values = values.cast(field.type.value_type)
        return values.cast(field.type)
    except pa.ArrowInvalid as error:
        expected = f"expected values of type {field.type}, as in the first file, got {values.type}"
        raise pa.ArrowInvalid(
            f"{shown(path)}: column {field.name!r}: {expected}: {error}"
        ) from error
