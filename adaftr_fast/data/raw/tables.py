"""Tables in memory as inputs: each is written to a parquet file, which is then read as
any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaftr_fast.data.arrow import FOLDER
from adaftr_fast.data.encode.written import holds_text
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.raw.batches import BATCH_ROWS, coalesced
from adaftr_fast.errors import DataError
from adaftr_fast.files.publish import publisher_lock
from adaftr_fast.files.whole import followed, make_folder, remove

# the columns that pandas makes of an index without a name
INDEX = re.compile(r"__index_level_\d+__")


@runtime_checkable
class ArrowStream(Protocol):
    """A table that exports Arrow data, as pandas, Polars and PyArrow have them (Arrow's PyCapsule
    interface).
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Returns an Arrow C stream in a capsule."""


INPUT = (str, os.PathLike, Path, ArrowStream)
Input = str | os.PathLike[str] | ArrowStream
Inputs = Iterable[Input] | Input


@contextmanager
def input_files(inputs: Inputs, out: Path, memory: Memory = DEFAULT) -> Iterator[list[Path]]:
    """Provides inputs as files during the block. Tables become ``table.parquet``,
    ``table-2.parquet`` and so on.

    Dictionaries become plain values and views plain text or lists. Columns of an index without a
    name are left out.

    Args:
        inputs: a path or a table, or several of them.
        out: what is made of the inputs; the files lie in a folder next to it, which is removed
            after the block.
        memory: the bound of this process, beside the tables.

    Raises:
        BusyError: another process or thread makes ``out``.
        DataError: a table has two columns of the same name, or values that Arrow cannot represent.
        OSError: the files cannot be written.
        TypeError: an input is neither a path nor a table.
    """
    listed = list_inputs(inputs)
    if not any(isinstance(each, ArrowStream) for each in listed):
        yield [Path(each) for each in listed if not isinstance(each, ArrowStream)]
        return
    out = followed(out)
    folder = out.with_name(f".{out.name}{FOLDER}")
    with publisher_lock(out):
        remove(folder)  # of a process that was killed
        try:
            make_folder(folder)
            yield [
                _file(each, folder, number, memory) for number, each in enumerate(listed, start=1)
            ]
        finally:
            remove(folder)


def list_inputs(inputs: Inputs) -> list[Input]:
    """Returns inputs as a list, since an iterator can be read only once."""
    if isinstance(inputs, INPUT) or not isinstance(inputs, Iterable):
        inputs = [inputs]
    listed = list(inputs)
    for each in listed:
        if not isinstance(each, INPUT):
            expected = "paths, or tables with __arrow_c_stream__ (pandas 2.2, Polars 1 or PyArrow)"
            raise TypeError(
                f"files: expected {expected}, got {type(each).__module__}.{type(each).__qualname__}"
            )
    return listed


def read_table(source: ArrowStream) -> pa.Table:
    """Returns a table in memory, with the columns that ``input_files`` would write.

    Raises:
        DataError: it has two columns of the same name, or values that Arrow cannot represent, or is
            a single column or row of pandas.
    """
    if getattr(source, "ndim", 2) == 1:
        raise DataError(
            f"rows: expected a table, got a {type(source).__name__}; of a row, pass .to_dict()"
        )
    with _plain(source, "rows") as (schema, tables):
        return pa.concat_tables([schema.empty_table(), *tables])


def _file(source: Input, folder: Path, number: int, memory: Memory) -> Path:
    if not isinstance(source, ArrowStream):
        return Path(source)
    path = _place(folder, number)
    with (
        _plain(source, "files") as (schema, tables),
        pq.ParquetWriter(path, schema, compression="lz4", write_page_checksum=True) as writer,
    ):
        for batch in coalesced(tables, memory):
            writer.write_batch(batch)
    return path


@contextmanager
def _plain(source: ArrowStream, argument: str) -> Iterator[tuple[pa.Schema, Iterator[pa.Table]]]:
    """Provides the schema and the rows of a table, with the types that the readers of files
    know.
    """
    try:
        reader = pa.RecordBatchReader.from_stream(source)
        kept = [each for each in reader.schema if not INDEX.fullmatch(each.name)]
        schema = pa.schema([pa.field(each.name, _plain_type(each.type)) for each in kept])
        if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise ValueError(f"expected columns of distinct names, got {twice[0]!r} twice")
        yield schema, _plain_tables(reader, schema)
    # such as pandas' objects of different types
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"{argument}: the table cannot be read: {' '.join(map(str, error.args))}"
        ) from error


def _place(folder: Path, number: int) -> Path:
    return folder / ("table.parquet" if number == 1 else f"table-{number}.parquet")


def _plain_tables(reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.Table]:
    for batch in reader:
        # text of more than 2 GiB fits no single array
        for start in range(0, batch.num_rows, BATCH_ROWS):
            columns = batch.slice(start, BATCH_ROWS)
            yield pa.table(
                [_plain_array(columns[each.name], each.type) for each in schema], schema=schema
            )


def _plain_array(values: pa.Array, kind: pa.DataType) -> pa.Array:
    # Arrow cannot decode a dictionary of views, which Polars has
    if pa.types.is_dictionary(values.type):
        values = pa.DictionaryArray.from_arrays(
            values.indices, values.dictionary.cast(kind)
        ).dictionary_decode()
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    return values.cast(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the same values that the readers of files know."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if holds_text(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.float32() if types.is_float16(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Returns whether values of a type are lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
